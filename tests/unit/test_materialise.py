"""What an agent makes of a packed shard or of patches is the coordinator's shard to the byte, or nothing."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from fedcybgd.agent.messages import LocalPatch, LocalShard
from fedcybgd.agent.training.shards import ShardCorrupt, materialise
from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, ApplyResult, Change, EncodedRef, Term
from fedcybgd.coordinator.engine.apply import apply
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.storage import BlobStore, open_store
from fedcybgd.shared.contract.digests import digest_of, digest_of_file
from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.words import DeltaCodec
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.lossless import MAGIC, PackedError
from fedcybgd.shared.tensors.codecs import CodecError
from tests.support.deltas import write_delta

Tensors = dict[str, torch.Tensor]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BLOCK = {"a.weight": normal(64, 80), "a.bias": normal(64, seed=1), "odd.weight": normal(40, 33, seed=2)}


class History:
    """A block on the coordinator, trained round after round."""

    def __init__(self, folder: Path, block: Tensors = BLOCK, codec: str = "exact", weight: float = 1.0) -> None:
        self.store: BlobStore = open_store(folder / "blobs")
        self.folder, self.weight = folder, weight
        self.encoder = ShardEncoder(self.store, None, None)
        digest, size = write_blob(self.store, save(block))
        self.exact = [ShardRef(block="layers.0", version=0, codec="exact", digest=digest, size=size)]
        self.shards: list[EncodedRef] = [self.encoder.encode(digest, codec)]
        self.results: list[ApplyResult] = []

    def path(self, digest: str) -> Path:
        return self.store.path(digest)

    def train(self, delta_codec: DeltaCodec = "int8", scale: float = 1e-3) -> None:
        base = load_file(self.path(self.exact[-1].digest))
        trained = {n: t.float() + scale * normal(*t.shape, seed=len(self.exact)) for n, t in base.items()}
        out = self.folder / "delta"
        write_delta({"layers.0": trained}, {"layers.0": self.path(self.exact[-1].digest)}, out, delta_codec)
        delta, _ = write_blob(self.store, out.read_bytes())
        change = Change(block=self.exact[-1], terms=[Term(digest=delta, weight=self.weight)], codecs=[self.shards[-1].codec])
        result = apply(self.store, ApplyPayload(round=0, changes=[change], before=[self.shards[-1]]))
        self.exact.append(result.blocks[0])
        self.shards.append(result.shards[0])
        self.results.append(result)

    def shard(self, cache: Path, back: int) -> LocalShard:
        """The newest shard, to be made of the one `back` versions before it and patches, all of which are in `cache`."""
        cache.mkdir(exist_ok=True)
        base, new = self.shards[-1 - back], self.shards[-1]
        (cache / base.digest).write_bytes(self.path(base.digest).read_bytes())
        patches = []
        for result in self.results[len(self.results) - back :]:
            made = next(patch for patch in result.patches if patch.target == result.shards[0].digest)
            (cache / made.digest).write_bytes(self.path(made.digest).read_bytes())
            target = str(cache / made.target)
            patches.append(LocalPatch(kind=made.kind, path=str(cache / made.digest), weight=made.weight, digest=made.target, target=target))
        return LocalShard(
            block="layers.0", digest=new.digest, codec=new.codec, path=str(cache / new.digest), size=new.size,
            base=str(cache / base.digest), patches=patches,
        )  # fmt: skip


def equal(history: History, shard: LocalShard) -> bool:
    return Path(shard.path).read_bytes() == history.path(history.shards[-1].digest).read_bytes()


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize("back", [1, 2])
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_steps_between_encoded_shards(tmp_path: Path, codec: str, back: int) -> None:
    history = History(tmp_path, codec=codec)
    for _ in range(back):
        history.train(scale=1e-3)
    shard = history.shard(tmp_path / "cache", back)
    assert [p.kind for p in shard.patches] == ["difference"] * back
    materialise(shard)
    assert equal(history, shard)


@pytest.mark.parametrize("back", [1, 2])
@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize("delta_codec", ["bfloat16", "int8", "int4"])
def test_a_delta_makes_the_next_exact_version(tmp_path: Path, delta_codec: DeltaCodec, weight: float, back: int) -> None:
    history = History(tmp_path, weight=weight)
    for _ in range(back):
        history.train(delta_codec)
    shard = history.shard(tmp_path / "cache", back)
    assert [(p.kind, p.weight) for p in shard.patches] == [("delta", weight)] * back
    materialise(shard)
    assert equal(history, shard)
    assert not list((tmp_path / "cache").glob("*.*")), "nothing is left aside"


def test_a_bfloat16_block_becomes_float32_with_its_first_delta_and_buffers_stay(tmp_path: Path) -> None:
    block = {"w": normal(64, 64).bfloat16(), "position_ids": torch.arange(7)}
    history = History(tmp_path, block)
    base = load_file(history.path(history.exact[0].digest))
    out = tmp_path / "delta"
    write_delta({"layers.0": {"w": base["w"].float() + 1e-4}}, {"layers.0": history.path(history.exact[0].digest)}, out, "int8")
    delta, _ = write_blob(history.store, out.read_bytes())
    change = Change(block=history.exact[0], terms=[Term(digest=delta, weight=1.0)], codecs=["exact"])
    history.results.append(apply(history.store, ApplyPayload(round=0, changes=[change], before=[history.shards[0]])))
    history.shards.append(history.results[0].shards[0])
    shard = history.shard(tmp_path / "cache", 1)
    materialise(shard)
    assert equal(history, shard)
    made = load_file(Path(shard.path))
    assert (made["w"].dtype, made["position_ids"].tolist()) == (torch.float32, list(range(7)))


def test_packed_and_whole(tmp_path: Path) -> None:
    history = History(tmp_path, codec="int8")
    made = history.shards[0]
    packed = tmp_path / "packed"
    packed.write_bytes(history.path(made.packed.digest).read_bytes())
    shard = LocalShard(block="b", digest=made.digest, codec="int8", path=str(tmp_path / made.digest), size=made.size, packed=str(packed))
    materialise(shard)
    assert equal(history, shard)
    packed.write_bytes(b"never read again")
    materialise(shard)


def test_a_packed_form_of_something_else_is_thrown_away(tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_file({"a": torch.ones(8)}, other)
    (tmp_path / "packed").write_bytes(b"".join(lossless.pack(other)))
    wrong = digest_of(b"what the manifest names")
    shard = LocalShard(
        block="b", digest=wrong, codec="exact", path=str(tmp_path / wrong), size=other.stat().st_size, packed=str(tmp_path / "packed")
    )
    with pytest.raises(ShardCorrupt):
        materialise(shard)
    assert not (tmp_path / wrong).exists()


def damaged_patch(cache: Path, shard: LocalShard) -> None:
    spoil(Path(shard.patches[0].path))


def wrong_base(cache: Path, shard: LocalShard) -> None:
    assert shard.base is not None
    tensors = {n: t + (1 if t.is_floating_point() else 0) for n, t in load_file(shard.base).items()}
    header = json.loads(Path(shard.base).read_bytes()[8:].split(b"}}")[0] + b"}}")
    save_file(tensors, shard.base, header.get("__metadata__"))


def cut_base(cache: Path, shard: LocalShard) -> None:
    assert shard.base is not None
    Path(shard.base).write_bytes(Path(shard.base).read_bytes()[:-4])


def another_weight(cache: Path, shard: LocalShard) -> None:
    shard.patches[0] = shard.patches[0].model_copy(update={"weight": 0.9})


def another_target(cache: Path, shard: LocalShard) -> None:
    shard.patches[-1] = shard.patches[-1].model_copy(update={"digest": digest_of(b"x"), "target": str(cache / digest_of(b"x"))})


@pytest.mark.parametrize(
    ("codec", "harm"),
    [
        ("int8", damaged_patch), ("int8", wrong_base), ("int8", cut_base), ("int8", another_target),
        ("exact", damaged_patch), ("exact", wrong_base), ("exact", cut_base), ("exact", another_weight), ("exact", another_target),
    ],
)  # fmt: skip
def test_what_does_not_come_out_right_is_thrown_away(tmp_path: Path, codec: str, harm: Callable[[Path, LocalShard], None]) -> None:
    history = History(tmp_path, codec=codec)
    history.train()
    cache = tmp_path / "cache"
    shard = history.shard(cache, 1)
    before = {f.name for f in cache.iterdir()}
    harm(cache, shard)
    with pytest.raises((ShardCorrupt, PackedError, CodecError, HeaderError)):  # each is reported as shard_corrupt
        materialise(shard)
    assert {f.name for f in cache.iterdir()} == before, "nothing bad stays"


def test_a_bomb_in_a_packed_shard_is_not_unpacked(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    save_file({"zeros": torch.zeros(1 << 20)}, plain)  # 4 MiB that pack to a few kilobytes
    packed = tmp_path / "packed"
    packed.write_bytes(b"".join(lossless.pack(plain)))
    assert packed.stat().st_size < 100_000
    shard = LocalShard(block="b", digest=digest_of_file(plain), codec="exact", path=str(tmp_path / "out"), size=1000, packed=str(packed))
    with pytest.raises(PackedError, match="1000 bytes"):
        materialise(shard)
    claims = tmp_path / "claims"
    claims.write_bytes(MAGIC + struct.pack("<BI", 1, 1 << 31))
    with pytest.raises(PackedError):
        materialise(shard.model_copy(update={"packed": str(claims)}))
    assert {f.name for f in tmp_path.iterdir()} == {"plain", "packed", "claims"}


def test_a_bomb_in_a_delta_stops_at_the_size_of_its_shard(tmp_path: Path) -> None:
    base, bomb = tmp_path / "base", tmp_path / "bomb"
    save_file({"w": torch.zeros(64, 64)}, base)
    save_file({"w": torch.zeros(4096, 4096)}, tmp_path / "plain")  # 64 MiB that pack to some kilobytes
    bomb.write_bytes(b"".join(lossless.pack(tmp_path / "plain")))
    (tmp_path / "plain").unlink()
    assert bomb.stat().st_size < 1 << 20
    step = LocalPatch(kind="delta", path=str(bomb), weight=1.0, digest="a" * 64, target=str(tmp_path / "out"))
    shard = LocalShard(
        block="b", digest="a" * 64, codec="exact", path=str(tmp_path / "out"), size=base.stat().st_size, base=str(base), patches=[step]
    )
    with pytest.raises(PackedError, match="unpacks to more than"):
        materialise(shard)
    save_file({"w": torch.zeros(64, 64)}, bomb)
    with pytest.raises(ShardCorrupt, match="makes more than"):
        materialise(shard.model_copy(update={"size": 1000}))
    assert {f.name for f in tmp_path.iterdir()} == {"base", "bomb"}


def test_without_anything_to_make_it_of(tmp_path: Path) -> None:
    with pytest.raises(ShardCorrupt, match=r"layers\.0"):
        materialise(LocalShard(block="layers.0", digest=digest_of(b""), codec="exact", path=str(tmp_path / "x"), size=5))
