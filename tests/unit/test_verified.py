"""Bytes are verified before they are computed with, on both sides; what is damaged is set aside or thrown away, and never used."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.messages import LocalShard
from fedcybgd.agent.training.shards import ShardCorrupt, materialise
from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, FidelityPayload, InfluencePayload
from fedcybgd.coordinator.domain.jobs.payloads import AdmitPayload, ApplyPayload, Change, EncodePayload, ExportPayload, Term
from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.coordinator.engine.admit import admit
from fedcybgd.coordinator.engine.apply import apply
from fedcybgd.coordinator.engine.encode import encode
from fedcybgd.coordinator.engine.evaluate import evaluate
from fedcybgd.coordinator.engine.export import export
from fedcybgd.coordinator.engine.fidelity import fidelity
from fedcybgd.coordinator.engine.influence import influence
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.storage import BlobDamaged, BlobMissing, open_store
from fedcybgd.shared.contract.digests import digest_of, digest_of_file
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files import verified as verified_module
from fedcybgd.shared.files.verified import Verifier
from tests.support.measured import Measured

Harm = Callable[[Path], None]


def flip(path: Path) -> None:
    """One bit, in the middle: of a mantissa, as a rule."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_in_disguise(path: Path) -> None:
    """The same, and the file's own times say that nothing was changed."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


HARMS: list[Any] = [flip, flip_in_disguise, cut, empty, lengthen]


@pytest.fixture(params=HARMS)
def harm(request: pytest.FixtureRequest) -> Harm:
    harm: Harm = request.param
    return harm


def test_a_file_is_hashed_once_and_again_when_it_was_changed(tmp_path: Path, harm: Harm, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def counting(path: Path) -> str:
        hashed.append(path)
        return digest_of_file(path)

    monkeypatch.setattr(verified_module, "digest_of_file", counting)
    path, data = tmp_path / "a", bytes(range(256)) * 1000
    path.write_bytes(data)
    time.sleep(2 * verified_module.TICK_S)
    verifier = Verifier()
    for _ in range(3):
        assert verifier.is_whole(path, digest_of(data))
        verifier.used(path)
    assert len(hashed) == 1
    assert not verifier.is_whole(path, digest_of(b"another"))
    assert verifier.is_whole(path, digest_of(data))
    harm(path)
    assert not verifier.is_whole(path, digest_of(data))
    path.write_bytes(data)
    assert verifier.is_whole(path, digest_of(data))
    monkeypatch.setattr(verified_module, "AGAIN_S", 0)
    count = len(hashed)
    verifier.is_whole(path, digest_of(data))
    assert len(hashed) == count + 1, "disks forget: it is looked at again after a while"


def test_a_damaged_blob_is_set_aside_and_another_takes_its_place(tmp_path: Path, harm: Harm) -> None:
    store, data = open_store(tmp_path), bytes(range(256)) * 1000
    digest, _ = write_blob(store, data)
    store.path(digest)
    harm(store.path(digest))
    harmed = (tmp_path / digest[:2] / digest).read_bytes()
    with pytest.raises(BlobDamaged) as damaged:
        store.path(digest)
    assert (damaged.value.code, damaged.value.detail["digest"]) == ("blob_damaged", digest)
    assert not store.has(digest)
    with pytest.raises(BlobMissing):
        store.path(digest)
    (aside,) = (tmp_path / "damaged").iterdir()
    assert aside.read_bytes() == harmed
    assert list(store.stored()) == []
    write_blob(store, data)
    assert store.path(digest).read_bytes() == data


JOBS: dict[str, Callable[[Measured], Any]] = {
    "admit": lambda m: admit(
        m.store, AdmitPayload(assignment_id="a", delta=m.delta, blocks=[m.blocks[1]], always=[], rules=AdmissionSection())
    ),
    "apply": lambda m: apply(m.store, ApplyPayload(round=0, changes=[Change(block=m.blocks[1], terms=[Term(digest=m.delta, weight=1)])])),
    "encode": lambda m: encode(
        m.store, EncodePayload(config=m.files[0], task=m.task, wanted=[m.blocks[1].model_copy(update={"codec": "int8"})])
    ),
    "pack": lambda m: encode(m.store, EncodePayload(config=m.files[0], task=m.task, wanted=[m.blocks[1]])),
    "evaluate": lambda m: evaluate(m.store, EvaluatePayload(after_rounds=0, **m.payload())),
    "export": lambda m: export(m.store, ExportPayload(after_rounds=0, task=m.task, files=m.files, blocks=m.blocks)),
    "influence": lambda m: influence(m.store, InfluencePayload.model_validate(m.payload())),
    "fidelity": lambda m: fidelity(
        m.store, FidelityPayload.model_validate(m.payload() | {"plan": "x", "block": "layers.1", "emulator": m.blocks, "batch_size": 4})
    ),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    from safetensors.torch import load_file, save

    measured: Any = Measured("bert", tmp_path_factory.mktemp("intact"), wide=True)
    block = measured.blocks[1]
    change = {name: 0.001 * t for name, t in load_file(measured.store.path(block.digest)).items()}
    measured.delta = write_blob(measured.store, save(change, {"codec": "float32"}))[0]
    return measured  # type: ignore[no-any-return]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("spoil", [flip, empty, Path.unlink])
def test_no_job_computes_with_a_blob_that_is_damaged(job: str, spoil: Harm, intact: Any) -> None:
    digest = intact.blocks[1].digest
    path, data = intact.store.path(digest), intact.store.path(digest).read_bytes()
    spoil(path)
    try:
        with pytest.raises((BlobDamaged, BlobMissing), match=digest):
            JOBS[job](intact)
    finally:
        path.write_bytes(data)
    assert JOBS[job](intact) is not None, "once it is put back, all is well"


@pytest.mark.parametrize("what", ["delta", "held_out", "files"])
def test_damage_anywhere_is_called_damage(what: str, intact: Any) -> None:
    """The coordinator's own fault is nobody else's: a damaged delta is not a rejected one, a damaged held-out file no bad row."""
    digest = {"delta": intact.delta, "held_out": intact.held_out.digest, "files": intact.files[0].digest}[what]
    path, data = intact.store.path(digest), intact.store.path(digest).read_bytes()
    flip(path)
    try:
        with pytest.raises(BlobDamaged, match=digest):
            JOBS["admit" if what == "delta" else "evaluate"](intact)
    finally:
        path.write_bytes(data)


# ---- what an agent sends -----------------------------------------------------------------------------------------


def _packed(data: bytes, folder: Path) -> bytes:
    (folder / "plain").write_bytes(data)
    return b"".join(lossless.pack(folder / "plain"))


def _bomb(folder: Path) -> bytes:
    import torch
    from safetensors.torch import save

    return _packed(save({"x": torch.zeros(50_000_000)}), folder)


def _tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any, Path], bytes]:
    def make(measured: Any, _: Path) -> bytes:
        from safetensors.torch import load, save

        tensors = load(measured.store.path(measured.delta).read_bytes())
        change(tensors)
        return save({n: t.contiguous() for n, t in tensors.items()}, {"codec": "float32"})

    return make


def _first(tensors: dict[str, Any]) -> str:
    return next(name for name, t in tensors.items() if t.ndim == 2)


MALFORMED: dict[str, Callable[[Any, Path], bytes]] = {
    "nothing": lambda m, f: b"",
    "text": lambda m, f: b"<html>" * 1000,
    "cut": lambda m, f: m.store.path(m.delta).read_bytes()[:-10],
    "packed and cut": lambda m, f: _packed(m.store.path(m.delta).read_bytes(), f)[:-10],
    "packed and flipped": lambda m, f: (lambda d: d[:500] + bytes([d[500] ^ 255]) + d[501:])(
        _packed(m.store.path(m.delta).read_bytes(), f)
    ),
    "bomb": lambda m, f: _bomb(f),
    "another shape": _tensors(lambda t: t.update({_first(t): t[_first(t)][:-1]})),
    "transposed": _tensors(lambda t: t.update({_first(t): t[_first(t)].T[:, :-1]})),
    "whole numbers": _tensors(lambda t: t.update({_first(t): t[_first(t)].int()})),
    "an unknown codec": lambda m, f: m.store.path(m.delta).read_bytes().replace(b'"float32"', b'"float99"'),
}


@pytest.mark.parametrize("how", MALFORMED)
def test_what_is_wrong_with_a_deltas_bytes_is_a_rejected_delta(how: str, intact: Any, tmp_path: Path) -> None:
    digest, _ = write_blob(intact.store, MALFORMED[how](intact, tmp_path))
    payload = AdmitPayload(assignment_id="a", delta=digest, blocks=[intact.blocks[1]], always=[], rules=AdmissionSection())
    result = admit(intact.store, payload)
    assert result.rejected_because is not None
    assert result.rejected_because.startswith(("malformed: ", "codec: ")), result.rejected_because
    assert sum(f.stat().st_size for f in (tmp_path / "incoming").glob("*")) == 0


# ---- the agent's side --------------------------------------------------------------------------------------------


def test_a_damaged_file_of_the_cache_counts_as_none_and_is_fetched_again(tmp_path: Path, harm: Harm) -> None:
    data = bytes(range(256)) * 1000
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    (tmp_path / "made").write_bytes(data)
    cache.adopt(tmp_path / "made", digest_of(data))
    assert cache.has(digest_of(data))
    harm(cache.path(digest_of(data)))

    @contextmanager
    def fetch(offset: int) -> Iterator[httpx.Response]:
        assert offset == 0
        yield httpx.Response(200, stream=httpx.ByteStream(data))

    assert cache.get(digest_of(data), len(data), fetch).read_bytes() == data
    harm(cache.path(digest_of(data)))
    assert not cache.has(digest_of(data))
    assert not cache.path(digest_of(data)).exists()


def test_a_shard_is_verified_before_it_is_trained_with_and_made_again_where_it_can_be(tmp_path: Path, harm: Harm, intact: Any) -> None:
    ref = intact.blocks[1]
    data = intact.store.path(ref.digest).read_bytes()
    shard, packed = tmp_path / "shard", tmp_path / "packed"
    shard.write_bytes(data)
    packed.write_bytes(b"".join(lossless.pack(shard)))
    local = LocalShard(block=ref.block, digest=ref.digest, codec="exact", path=str(shard), size=ref.size)
    materialise(local)
    harm(shard)
    with pytest.raises(ShardCorrupt):
        materialise(local)
    assert not shard.exists()
    materialise(local.model_copy(update={"packed": str(packed)}))
    assert shard.read_bytes() == data
    harm(shard)
    materialise(local.model_copy(update={"packed": str(packed)}))
    assert shard.read_bytes() == data
