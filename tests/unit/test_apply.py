"""Applying: base + Σ weight · decoded delta, to the bit; new versions in every codec that is in use, with the steps that lead to them."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.jobs.candidates import CandidateBlock
from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, ApplyResult, Change, EncodedRef, PatchMade, Term
from fedcybgd.coordinator.engine.aggregate import AGGREGATES
from fedcybgd.coordinator.engine.apply import add_deltas, apply
from fedcybgd.coordinator.engine.candidates import average
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.storage import BlobStore, open_store
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.lossless import PackedError
from fedcybgd.shared.tensors.deltas import add_decoded, decoded, encode_delta

Tensors = dict[str, torch.Tensor]
CODECS = ("float32", "bfloat16", "int8", "int4")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYER = {"a.weight": normal(64, 80), "b.bias": normal(64, seed=1), "odd.weight": normal(40, 33, seed=2)}
HEAD = {"head.weight": normal(3, 80, seed=3)}


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_store(tmp_path / "blobs")


def put(store: BlobStore, block: str, tensors: Tensors, version: int = 0) -> ShardRef:
    digest, size = write_blob(store, save(tensors))
    return ShardRef(block=block, version=version, codec="exact", digest=digest, size=size)


def delta(store: BlobStore, tmp_path: Path, codec: str, packed: bool, seed: int, shapes: Tensors) -> tuple[str, Tensors]:
    """A delta in the store, and what it decodes to."""
    encoded = encode_delta({n: 1e-3 * normal(*t.shape, seed=seed) for n, t in shapes.items()}, codec)
    plain = tmp_path / "plain"
    plain.write_bytes(save(dict(encoded), {"codec": codec}))
    data = b"".join(lossless.pack(plain)) if packed else plain.read_bytes()
    with safe_open(plain, "pt") as file:
        meant = {n: decoded(file, n, tuple(t.shape), codec) for n, t in shapes.items()}
    return write_blob(store, data)[0], meant


def run(store: BlobStore, *changes: Change, before: list[EncodedRef] | None = None) -> ApplyResult:
    return apply(store, ApplyPayload(round=0, changes=list(changes), before=before or []))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_adds_up_to_the_bit(tmp_path: Path, store: BlobStore, codec: str, packed: bool) -> None:
    layer, head = put(store, "layers.0", LAYER, 4), put(store, "head", HEAD)
    digest, meant = delta(store, tmp_path, codec, packed, 5, LAYER | HEAD)
    result = run(store, *(Change(block=b, terms=[Term(digest=digest, weight=0.3)]) for b in (layer, head)))
    assert [(b.block, b.version, b.codec) for b in result.blocks] == [("layers.0", 5, "exact"), ("head", 1, "exact")]
    for ref, old in zip(result.blocks, (LAYER, HEAD), strict=True):
        new = load_file(store.path(ref.digest))
        assert new.keys() == old.keys()
        for name, tensor in new.items():
            assert torch.equal(tensor, old[name] + (meant[name] * torch.tensor(0.3)))
            assert not torch.equal(tensor, old[name])


def test_what_is_trained_is_float32_from_then_on_and_what_has_no_delta_stays_to_the_byte(tmp_path: Path, store: BlobStore) -> None:
    half = normal(8, 4).to(torch.bfloat16)
    positions, scale = torch.arange(5), normal(3, seed=9).to(torch.float16)
    block = put(store, "layers.0", {"a.weight": half, "positions": positions, "scale": scale})
    digest, meant = delta(store, tmp_path, "float32", True, 5, {"a.weight": half})
    [ref] = run(store, Change(block=block, terms=[Term(digest=digest, weight=1.0)])).blocks
    new = load_file(store.path(ref.digest))
    assert {name: tensor.dtype for name, tensor in new.items()} == {
        "a.weight": torch.float32, "positions": torch.int64, "scale": torch.float16,
    }  # fmt: skip
    assert torch.equal(new["a.weight"], half.float() + meant["a.weight"])
    assert torch.equal(new["positions"], positions)
    assert torch.equal(new["scale"], scale)


@pytest.mark.parametrize("codec", CODECS)
def test_a_tensor_is_computed_some_rows_at_a_time_with_the_same_bits(
    tmp_path: Path, store: BlobStore, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedcybgd.coordinator.engine import aggregate as module

    layer = put(store, "layers.0", LAYER | {"scalar": torch.tensor(2.0), "none": torch.zeros(0, 80)})
    terms = [Term(digest=delta(store, tmp_path, codec, True, seed, LAYER | {"scalar": torch.zeros(())})[0], weight=0.3) for seed in (5, 6)]
    whole = run(store, Change(block=layer, terms=terms)).blocks[0].digest
    computed: list[int] = []

    def watched(base: torch.Tensor, terms: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
        computed.append(max(t.numel() for t in (base, *(t for t, _ in terms))))
        return add_decoded(base, terms)

    monkeypatch.setattr("fedcybgd.shared.tensors.delta_file.NUMBERS", 3 * 80)
    monkeypatch.setattr(module, "add_decoded", watched)
    assert run(store, Change(block=layer, terms=terms)).blocks[0].digest == whole
    assert max(computed) <= 3 * 80
    assert len(computed) == 22 + 1 + 6 + 1  # 64 rows of 80 by threes, 64 numbers, 40 rows of 33 by sevens, one number


def test_deltas_of_a_wave_are_averaged_where_they_meet(tmp_path: Path, store: BlobStore) -> None:
    other, head = {n.replace(".", "2."): t for n, t in LAYER.items()}, {"head.weight": normal(96, 80, seed=3)}
    blocks = [put(store, "layers.0", LAYER), put(store, "layers.1", other), put(store, "head", head)]
    first, meant_first = delta(store, tmp_path, "int4", True, 6, LAYER | head)
    second, meant_second = delta(store, tmp_path, "int4", True, 7, other | head)
    terms = [[Term(digest=first, weight=0.5)], [Term(digest=second, weight=0.5)],
             [Term(digest=first, weight=0.25), Term(digest=second, weight=0.25)]]  # fmt: skip
    before = [ShardEncoder(store, None, None).encode(b.digest, "exact") for b in blocks]
    result = run(store, *(Change(block=b, terms=t) for b, t in zip(blocks, terms, strict=True)), before=before)
    found = load_file(store.path(result.blocks[2].digest))["head.weight"]
    assert torch.equal(found, head["head.weight"] + 0.25 * meant_first["head.weight"] + 0.25 * meant_second["head.weight"])
    layer = load_file(store.path(result.blocks[1].digest))
    assert all(torch.equal(layer[n], other[n] + 0.5 * meant_second[n]) for n in other)
    # No single delta leads to a sum of two, though each is smaller than the head.
    assert [(p.kind, p.base, p.weight) for p in result.patches] == [("delta", b.digest, 0.5) for b in blocks[:2]]


def test_a_repeat_after_a_crash_gives_the_same(tmp_path: Path, store: BlobStore) -> None:
    layer = put(store, "layers.0", LAYER)
    digest, _ = delta(store, tmp_path, "int8", True, 5, LAYER)
    change = Change(block=layer, terms=[Term(digest=digest, weight=1.0)])
    before = [ShardEncoder(store, None, None).encode(layer.digest, "int4")]
    assert run(store, change, before=before) == run(store, change, before=before)


def test_the_new_version_is_there_in_the_codecs_in_use(tmp_path: Path, store: BlobStore) -> None:
    layer = put(store, "layers.0", LAYER)
    digest, _ = delta(store, tmp_path, "int8", True, 5, LAYER)
    encoder = ShardEncoder(store, None, None)
    before = [encoder.encode(layer.digest, codec) for codec in ("exact", "int8")]
    strange = encoder.encode(put(store, "layers.1", {"x": normal(64, 64)}).digest, "int4")
    result = run(store, Change(block=layer, terms=[Term(digest=digest, weight=1.0)], codecs=["int4"]), before=[*before, strange])
    new = result.blocks[0].digest
    assert [(s.source, s.codec) for s in result.shards] == [(new, "int4"), (new, "int8")], "packed exact nobody has asked for it"
    assert result.shards == [encoder.encode(new, s.codec) for s in result.shards], "as if it were made from scratch"
    steps = {p.target: p for p in result.patches}
    int4, int8 = (s.digest for s in result.shards)
    assert (steps[new].kind, steps[new].base, steps[new].digest) == ("delta", layer.digest, digest)
    assert (steps[int8].kind, steps[int8].base) == ("difference", before[1].digest)
    assert int4 not in steps, "nobody holds what it could start from"


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_over_the_steps_so_far_one_patch_leads_as_well(tmp_path: Path, store: BlobStore, codec: str) -> None:
    present, encoder = put(store, "layers.0", LAYER), ShardEncoder(store, None, None)
    shards, steps = [encoder.encode(present.digest, codec)], list[PatchMade]()
    for number in range(3):
        digest, _ = delta(store, tmp_path, "int8", True, number, LAYER)
        change = Change(block=present, terms=[Term(digest=digest, weight=0.5)])
        result = apply(store, ApplyPayload(round=number, changes=[change], before=shards[-1:], steps=steps))
        present = result.blocks[0]
        shards += result.shards
        differences = [patch for patch in result.patches if patch.kind == "difference"]
        assert [p.base for p in differences] == [shards[i].digest for i in range(number, -1, -1)], "from each version so far"
        steps.append(differences[0])
    over = differences[-1]
    assert (over.base, over.target) == (shards[0].digest, shards[-1].digest)
    expected = lossless.difference(store.path(over.base), store.path(over.target))
    assert store.path(over.digest).read_bytes() == b"".join(expected)
    assert over.size < sum(step.size for step in steps)
    round_about = steps[0].model_copy(update={"target": shards[0].digest, "base": shards[2].digest})
    turned = apply(store, ApplyPayload(round=2, changes=[change], before=shards[-2:-1], steps=[*steps[:2], round_about]))
    assert turned.patches[: len(result.patches)] == result.patches, "what was taken back and made again comes to an end"
    store.path(steps[0].digest).unlink()
    again = apply(store, ApplyPayload(round=2, changes=[change], before=shards[-2:-1], steps=steps[:2]))
    assert again.patches == [p for p in result.patches if p != over], (
        "the first step is lost, and whoever is so far behind takes the whole shard"
    )


def test_packed_exact_is_made_with_the_rest_where_the_change_says_so(tmp_path: Path, store: BlobStore) -> None:
    layer = put(store, "layers.0", LAYER)
    digest, _ = delta(store, tmp_path, "int8", True, 5, LAYER)
    result = run(store, Change(block=layer, terms=[Term(digest=digest, weight=1.0)], codecs=["exact", "int8"]))
    new = result.blocks[0].digest
    assert result.shards == [ShardEncoder(store, None, None).encode(new, codec) for codec in ("exact", "int8")]
    assert store.has(result.shards[0].packed.digest)


def test_a_delta_that_is_larger_than_the_shard_is_no_step(tmp_path: Path, store: BlobStore) -> None:
    layer = put(store, "layers.0", LAYER)
    before = [ShardEncoder(store, None, None).encode(layer.digest, "exact")]
    digest, _ = delta(store, tmp_path, "float32", False, 5, LAYER)
    assert run(store, Change(block=layer, terms=[Term(digest=digest, weight=1.0)]), before=before).patches == []


def test_every_aggregate_that_a_method_may_name_is_there() -> None:
    assert set(AGGREGATES) == set(get_args(Aggregate))


def test_of_a_delta_of_many_blocks_only_the_one_at_hand_is_unpacked(tmp_path: Path, store: BlobStore) -> None:
    """Who makes versions again takes them block by block. Bytes of the other block that nobody could unpack show that nobody tries."""
    blocks = {name: {f"{name}.weight": normal(1024, 600, seed=seed)} for seed, name in enumerate(("one", "two"))}
    digest, meant = delta(store, tmp_path, "float32", True, 7, {n: t for tensors in blocks.values() for n, t in tensors.items()})
    refs = {name: put(store, name, tensors) for name, tensors in blocks.items()}
    whole = {name: add_deltas(store, Change(block=refs[name], terms=[Term(digest=digest, weight=0.5)]))[0] for name in blocks}
    for name, ref in whole.items():
        assert torch.equal(
            load_file(store.path(ref.digest))[f"{name}.weight"], blocks[name][f"{name}.weight"] + meant[f"{name}.weight"] * 0.5
        )
    data = bytearray(store.path(digest).read_bytes())
    data[-1100:-100] = bytes(byte ^ 0xFF for byte in data[-1100:-100])  # within the last plane
    spoilt, _ = write_blob(store, bytes(data))
    assert add_deltas(store, Change(block=refs["one"], terms=[Term(digest=spoilt, weight=0.5)]))[0] == whole["one"]
    assert average(store, CandidateBlock(base=refs["one"], changes=[Change(block=refs["one"], terms=[Term(digest=spoilt, weight=0.5)])],
                                         rounds=[0, 1], last=whole["one"])).digest == whole["one"].digest  # fmt: skip
    with pytest.raises(PackedError):
        add_deltas(store, Change(block=refs["two"], terms=[Term(digest=spoilt, weight=0.5)]))
    with pytest.raises(PackedError):
        run(store, Change(block=refs["one"], terms=[Term(digest=spoilt, weight=0.5)]), Change(block=refs["two"], terms=[]))
