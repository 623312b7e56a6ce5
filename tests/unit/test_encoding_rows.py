"""A block in a codec is the same whether its tensors come whole or some rows at a time, in whatever order."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.engine.encoding import Encoding
from fedcybgd.coordinator.engine.planes import BY_NUMPY
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.storage import BlobStore, open_store
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.byte_planes import Arithmetic
from fedcybgd.shared.tensors.codecs import CodecError, encode_tensor


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BLOCK = {
    "z.weight": normal(70, 80), "a.weight": normal(33, 65, seed=1).bfloat16(), "conv": normal(9, 4, 40, seed=2), "bias": normal(64, seed=3),
    "scalar": torch.tensor(2.0), "none": torch.zeros(0, 80), "positions": torch.arange(9), "half": normal(40, 40, seed=4).half(),
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_store(tmp_path / "blobs")


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_rows_in_any_order_and_of_several_threads_make_what_whole_tensors_do(store: BlobStore, codec: str, tmp_path: Path) -> None:
    encoding = Encoding(codec, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in BLOCK.items()})
    parts = [
        (name, slice(row, row + 1) if tensor.ndim else None)
        for name, tensor in BLOCK.items()
        for row in range(max(1, *tensor.shape[:1], 0))
    ]
    random.Random(5).shuffle(parts)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda part: encoding.put(*part, BLOCK[part[0]][part[1]] if part[1] else BLOCK[part[0]]), parts))
    source, _ = write_blob(store, save(BLOCK))
    made, step = encoding.keep(store, source)
    assert step is None
    stored = load_file(store.path(made.digest))
    expected = {part: tensor for name in sorted(BLOCK) for part, tensor in encode_tensor(name, BLOCK[name], codec).items()}
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], tensor) and stored[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert made == ShardEncoder(store, None, None).encode(source, codec)
    assert store.path(made.packed.digest).read_bytes() == b"".join(lossless.pack(store.path(made.digest)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_the_name_of_their_tensor(value: float) -> None:
    encoding = Encoding("int8", {"w": (torch.float32, (64, 64))})
    with pytest.raises(CodecError, match="w: "):
        encoding.put("w", slice(3, 4), torch.full((1, 64), value))


def test_a_tensor_that_would_read_as_codes_is_refused_before_any_row() -> None:
    with pytest.raises(CodecError, match="codes"):
        Encoding("int4", {"w": (torch.int8, (64, 64))})


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_numpy_takes_chunks_apart_as_slices_do(width: int) -> None:
    data, old = (random.Random(seed).randbytes(8 * 33) for seed in (1, 2))
    assert BY_NUMPY.split(data, width) == Arithmetic().split(data, width)
    assert BY_NUMPY.subtract(data, old) == Arithmetic().subtract(data, old)
    assert BY_NUMPY.add(data, old) == Arithmetic().add(data, old)
    with pytest.raises(lossless.PackedError, match="shorter"):
        BY_NUMPY.subtract(data, old[1:])
