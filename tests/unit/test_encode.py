"""The engine makes a shard from (block version, codec) alone: the same bytes in every process, readable and packed without loss."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from fedcybgd.coordinator.domain.jobs.payloads import EncodedRef, EncodePayload
from fedcybgd.coordinator.engine.encode import ShardEncoder, encode
from fedcybgd.coordinator.engine.shards import write_blob, write_json
from fedcybgd.coordinator.storage import BlobStore, open_store
from fedcybgd.shared.contract.manifests import FileRef, ShardRef
from fedcybgd.shared.files import lossless
from fedcybgd.shared.models.assembly import skeleton
from fedcybgd.shared.models.blocks import partition
from fedcybgd.shared.tensors.codecs import CodecError
from tests.support.decoded import decode

CODECS = ("exact", "int8", "int4", "pruned:25")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_store(tmp_path / "blobs")


@pytest.fixture
def config(store: BlobStore, bert: Path) -> FileRef:
    return write_json(store, "config.json", json.loads((bert / "config.json").read_text()) | {"num_labels": 3})


@pytest.fixture
def layer(store: BlobStore, bert: Path) -> str:
    """The digest of layers.0 of a tiny BERT."""
    model = skeleton(json.loads((bert / "config.json").read_text()), "text-classification")
    names = {t.name for t in next(b for b in partition(model, 1) if b.name == "layers.0").tensors}
    tensors = load_file(bert / "model.safetensors")
    return write_blob(store, save({n: tensors[n] for n in sorted(names)}))[0]


def wanted(config: FileRef, digest: str, *codecs: str) -> EncodePayload:
    refs = [ShardRef(block="layers.0", version=0, codec=codec, digest=digest, size=1) for codec in codecs]
    return EncodePayload(config=config, task="text-classification", wanted=refs)


def test_another_process_makes_the_same_bytes(tmp_path: Path, store: BlobStore, config: FileRef, layer: str) -> None:
    here = encode(store, wanted(config, layer, *CODECS))
    other = open_store(tmp_path / "other")
    for digest in (layer, config.digest):
        write_blob(other, store.path(digest).read_bytes())
    script = """
import sys, torch
from pathlib import Path
torch.set_num_threads(3)
from fedcybgd.coordinator.domain.jobs.payloads import EncodePayload
from fedcybgd.coordinator.engine.entries import run
from fedcybgd.coordinator.storage import open_store
print(run("encode", EncodePayload.model_validate_json(sys.stdin.read()), open_store(Path(sys.argv[1]))).model_dump_json())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "other")], input=wanted(config, layer, *CODECS).model_dump_json(),
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "3", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == here.model_dump(mode="json")
    assert len({ref.digest for ref in here.shards}) == len(CODECS)


@pytest.mark.parametrize("codec", CODECS)
def test_a_shard_is_read_as_what_it_says_and_unpacks_to_itself(
    tmp_path: Path, store: BlobStore, config: FileRef, layer: str, codec: str
) -> None:
    made = encode(store, wanted(config, layer, codec)).shards[0]
    assert (made.source, made.codec) == (layer, codec)
    assert (made.digest == layer) is (codec == "exact")
    decoded = decode(store.path(made.digest), codec)
    exact = load_file(store.path(layer))
    assert decoded.keys() == exact.keys()
    assert made.size == store.size(made.digest)
    assert made.packed.size == store.size(made.packed.digest) < made.size
    lossless.unpack(store.path(made.packed.digest), tmp_path / "plain", made.size)
    assert (tmp_path / "plain").read_bytes() == store.path(made.digest).read_bytes()
    if codec in ("int8", "int4"):
        error = max(float((decoded[n] - exact[n]).norm() / (exact[n].norm() + 1e-9)) for n in exact)
        assert 0 < error < {"int8": 0.01, "int4": 0.15}[codec]


def test_codecs_are_ever_smaller(store: BlobStore, config: FileRef, layer: str) -> None:
    exact, int8, int4, pruned = (ref.size for ref in encode(store, wanted(config, layer, *CODECS)).shards)
    assert exact > pruned > int8 > int4


def encoder_of(store: BlobStore, config: FileRef) -> Callable[[bytes, str], EncodedRef]:
    encoder = ShardEncoder(store, config, "text-classification")
    return lambda data, codec: encoder.encode(write_blob(store, data)[0], codec)


def test_a_step_between_versions_is_made_if_it_is_smaller(tmp_path: Path, store: BlobStore, config: FileRef, layer: str) -> None:
    encoder = ShardEncoder(store, config, "text-classification")
    old = load_file(store.path(layer))
    near = {n: t + 1e-4 * torch.sign(t) for n, t in old.items()}
    even = {n: torch.ones_like(t) for n, t in old.items()}
    first = encoder.encode(layer, "int8")
    exact, other = (write_blob(store, save(dict(sorted(t.items()))))[0] for t in (near, even))
    close, patch = encoder.stepped(exact, "int8", first)
    assert patch is not None
    assert (patch.kind, patch.base, patch.target) == ("difference", first.digest, close.digest)
    assert patch.size == store.size(patch.digest) < close.packed.size
    lossless.apply_difference(store.path(first.digest), store.path(patch.digest), tmp_path / "made", close.size)
    assert (tmp_path / "made").read_bytes() == store.path(close.digest).read_bytes()
    assert close == encoder.encode(exact, "int8")
    assert encoder.stepped(other, "int8", first)[1] is None, "what packs to next to nothing is fetched whole"
    assert encoder.stepped(exact, "int8", encoder.encode(layer, "int4"))[1] is None, "two layouts have no step between them"


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_block_that_is_not_finite_is_refused_by_name(store: BlobStore, config: FileRef, codec: str, value: float) -> None:
    weight = torch.ones(64, 64)
    weight[3, 5] = value
    with pytest.raises(CodecError, match=r"some\.weight"):
        encoder_of(store, config)(save({"some.weight": weight}), codec)


@pytest.mark.parametrize("codec", ["int3", "pruned:0", "pruned:91", "pruned:2.5", "dropped", ""])
def test_a_codec_that_is_none_is_refused(store: BlobStore, config: FileRef, codec: str) -> None:
    with pytest.raises(CodecError):
        encoder_of(store, config)(save({"some.weight": torch.ones(64, 64)}), codec)


def test_an_odd_row_in_four_bits_is_kept_in_eight(store: BlobStore, config: FileRef) -> None:
    weight = torch.randn(40, 33, generator=torch.Generator().manual_seed(0))
    made = encoder_of(store, config)(save({"some.weight": weight}), "int4")
    stored = load_file(store.path(made.digest))
    assert stored["some.weight"].dtype == torch.int8
    assert "some.weight::offsets" not in stored
    assert torch.allclose(decode(store.path(made.digest), "int4")["some.weight"], weight, atol=0.02)
