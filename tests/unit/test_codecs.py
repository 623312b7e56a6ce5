"""A shard is read back as it was encoded, and one that is not what its codec promises is refused by the name of the tensor."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedcybgd.shared.tensors.codecs import CodecError, encode_tensor, encoded_names, parse_codec, quantizable, read_encoded
from fedcybgd.shared.tensors.quantized import QuantizedTensor
from tests.support.decoded import decode


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


BLOCK = {"w": normal(32, 96), "odd": normal(32, 33), "bias": normal(96), "position": torch.arange(2048).reshape(2, 1024)}


def encoded(codec: str, block: dict[str, Tensor] = BLOCK) -> dict[str, Tensor]:
    return {name: part for n, t in block.items() for name, part in encode_tensor(n, t, codec).items()}


def shard(folder: Path, tensors: dict[str, Tensor], codec: str | None) -> Path:
    path = folder / "shard.safetensors"
    save_file(tensors, path, {"codec": codec} if codec else None)
    return path


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("exact", ("exact", 0)), ("int8", ("int8", 0)), ("int4", ("int4", 0)), ("dropped", ("dropped", 0)),
     ("pruned:1", ("pruned", 1)), ("pruned:90", ("pruned", 90))],
)  # fmt: skip
def test_codecs_are_parsed(text: str, parsed: tuple[str, int]) -> None:
    assert parse_codec(text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "int2", "INT8", "int8:1", "pruned", "pruned:", "pruned:0", "pruned:91", "pruned:-5", "pruned:5.0", "pruned: 5",
     "pruned:05", "pruned:²", "pruned:5:5", "pruned:5\n", "pruned:" + "9" * 5000],
)  # fmt: skip
def test_unknown_codecs_and_ratios_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(CodecError):
        parse_codec(text)


@pytest.mark.parametrize("codec", ["exact", "pruned:25"])
def test_codecs_that_do_not_quantize_change_nothing(tmp_path: Path, codec: str) -> None:
    found = read_encoded(shard(tmp_path, encoded(codec), codec), codec)
    assert found.keys() == BLOCK.keys()
    assert all(isinstance(t, Tensor) and torch.equal(t, BLOCK[n]) for n, t in found.items())


def test_a_shard_without_metadata_is_exact(tmp_path: Path) -> None:
    path = shard(tmp_path, BLOCK, None)
    assert read_encoded(path, "exact").keys() == BLOCK.keys()
    with pytest.raises(CodecError, match="exact where int8"):
        read_encoded(path, "int8")


@pytest.mark.parametrize(("codec", "bits"), [("int8", 8), ("int4", 4)])
def test_large_tensors_are_quantized_and_small_ones_kept(tmp_path: Path, codec: str, bits: int) -> None:
    path = shard(tmp_path, encoded(codec), codec)
    found = read_encoded(path, codec)
    assert found.keys() == BLOCK.keys()
    weight, odd = found["w"], found["odd"]
    assert isinstance(weight, QuantizedTensor)
    assert weight.bits == bits
    assert isinstance(odd, QuantizedTensor)
    assert odd.bits == 8  # four bits hold no odd row
    for name in ("bias", "position"):
        kept = found[name]
        assert isinstance(kept, Tensor)
        assert torch.equal(kept, BLOCK[name])
    dense = decode(path, codec)
    assert dense["w"].dtype == torch.float32
    assert torch.equal(dense["w"], weight.dequantize())
    assert float((dense["w"] - BLOCK["w"]).norm() / BLOCK["w"].norm()) < (0.01 if bits == 8 else 0.1)


def test_what_is_quantized() -> None:
    assert quantizable("w", (32, 32), torch.bfloat16)
    assert not quantizable("small", (31, 32), torch.float32)
    assert not quantizable("bias", (4096,), torch.float32)
    assert not quantizable("ids", (64, 64), torch.int64)
    assert not quantizable("short rows", (4096, 4), torch.float32)


def test_encoding_names_the_tensor_it_refuses() -> None:
    with pytest.raises(CodecError, match=r"layer\.w: "):
        encode_tensor("layer.w", torch.full((32, 32), float("nan")), "int8")
    with pytest.raises(CodecError, match="mask: "):
        encode_tensor("mask", torch.zeros(4, dtype=torch.uint8), "int4")
    with pytest.raises(CodecError, match="w::scales: "):
        encode_tensor("w::scales", BLOCK["w"], "int8")
    with pytest.raises(CodecError, match="dropped"):
        encode_tensor("w", BLOCK["w"], "dropped")


def test_names_of_the_parts() -> None:
    assert encoded_names("a.b") == ("a.b", "a.b::scales", "a.b::offsets")


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scales_are_refused(tmp_path: Path, codec: str, value: float) -> None:
    tensors = encoded(codec)
    tensors["w::scales"][3, 1] = value
    with pytest.raises(CodecError, match="w: scales"):
        read_encoded(shard(tmp_path, tensors, codec), codec)


def test_bad_offsets_are_refused(tmp_path: Path) -> None:
    tensors = encoded("int4")
    tensors["w::offsets"][3, 1] = float("nan")
    with pytest.raises(CodecError, match="w: offsets"):
        read_encoded(shard(tmp_path, tensors, "int4"), "int4")


@pytest.mark.parametrize(
    ("codec", "changes", "message"),
    [
        ("int8", {"w::scales": None}, "w: codes without scales"),
        ("int8", {"w": None}, "w::scales: there are no codes"),
        ("int8", {"w": BLOCK["w"]}, "w: F32"),
        ("int8", {"w": torch.zeros(32, 48, dtype=torch.uint8)}, "w: U8"),
        ("int8", {"w::scales": torch.ones(32, 3, dtype=torch.bfloat16)}, "w::scales: is BF16"),
        ("int8", {"w::scales": torch.ones(32, 2)}, "w::scales: is F32"),
        ("int8", {"w::offsets": torch.ones(32, 2, dtype=torch.bfloat16)}, "w: codes of 4 bits"),
        ("int8", {"bias::scales": torch.ones(1, dtype=torch.bfloat16)}, "bias: F32"),
        ("int8", {"w::zeros": torch.ones(1)}, "w::zeros: no such tensor"),
        ("int8", {"v::scales": torch.ones(1)}, "v::scales: there are no codes"),
        ("int4", {"w::offsets": None}, "w: codes of 4 bits"),
        ("int4", {"w::scales": None}, "w::offsets: there are no codes"),
        ("int4", {"w::offsets": torch.ones(32, 2)}, "w::offsets: is F32"),
        ("exact", {"w::scales": torch.ones(32, 2, dtype=torch.bfloat16)}, "w::scales: no such tensor"),
    ],
)
def test_shards_that_break_their_promise_are_refused(tmp_path: Path, codec: str, changes: dict[str, Tensor | None], message: str) -> None:
    tensors = {n: t for n, t in ({**encoded(codec), **changes}).items() if t is not None}
    with pytest.raises(CodecError, match=message):
        read_encoded(shard(tmp_path, tensors, codec), codec)


def test_metadata_must_be_the_codec_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="unknown codec"):
        read_encoded(shard(tmp_path, encoded("int8"), "int3"), "int8")
    with pytest.raises(CodecError, match="int8 where int4"):
        read_encoded(shard(tmp_path, encoded("int8"), "int8"), "int4")
    with pytest.raises(CodecError, match="pruned:25 where pruned:30"):
        read_encoded(shard(tmp_path, encoded("exact"), "pruned:25"), "pruned:30")


def test_a_file_that_is_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CodecError):
        read_encoded(path, "int8")
