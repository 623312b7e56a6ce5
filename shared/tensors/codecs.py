"""How a block's tensors are stored in its shard: the codecs, and reading a shard without trusting it.

| codec | what a shard holds |
|---|---|
| `exact` | the tensors as they are |
| `int8`, `int4` | large floating-point tensors as `name` (codes), `name::scales` and, in 4 bits, `name::offsets`; the others as they are |
| `pruned:N` | the tensors of narrower layers (N percent of the width is gone), as they are |

A block that is `dropped` has no shard.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fedcybgd.shared.contract.codec import DROPPED, EXACT, PRUNED
from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.files.safetensors_header import Header, read_header
from fedcybgd.shared.tensors.dtypes import DTYPES
from fedcybgd.shared.tensors.quantized import GROUP, CodecError, QuantizedTensor, TensorSource, quantize

__all__ = [
    "CodecError", "bits_of", "encode_rows", "encode_tensor", "encoded_names", "names_in", "parse_codec", "quantizable", "read_dense_rows",
    "read_encoded", "read_stored",
]  # fmt: skip

SCALES, OFFSETS = "::scales", "::offsets"
MIN_NUMEL = 1024
MIN_ROW = 16
"""Shorter rows would pay more for their scale than they save."""
MAX_PERCENT = 90
BITS = {"int8": 8, "int4": 4}


def parse_codec(text: str) -> tuple[str, int]:
    """ "pruned:25" → ("pruned", 25), "int8" → ("int8", 0). Raises `CodecError` for an unknown codec or a percentage outside 1..90."""
    kind, colon, ratio = text.partition(":")
    if kind == PRUNED:
        if not (re.fullmatch("[1-9][0-9]?", ratio) and int(ratio) <= MAX_PERCENT):
            raise CodecError(f"codec {text!r}: the percentage to prune must be a whole number from 1 to {MAX_PERCENT}")
        return kind, int(ratio)
    if colon or kind not in (EXACT, "int8", "int4", DROPPED):
        raise CodecError(f"unknown codec {text!r}; known are exact, int8, int4, pruned:N and dropped")
    return kind, 0


def quantizable(name: str, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether int8 and int4 store a tensor in fewer bits: floating point, two or more dimensions, and not small.

    Biases, norms and their like stay as they are: they are a thousandth of the bytes and matter more than that.
    """
    return dtype.is_floating_point and "::" not in name and len(shape) >= 2 and shape[-1] >= MIN_ROW and math.prod(shape) >= MIN_NUMEL


def encoded_names(name: str) -> tuple[str, str, str]:
    """The names of a tensor's codes, scales and offsets."""
    return name, name + SCALES, name + OFFSETS


def encode_tensor(name: str, tensor: Tensor, codec: str) -> dict[str, Tensor]:
    """What a shard of this codec stores for one tensor. Under int4, a tensor with an odd last dimension is stored in 8 bits.

    Raises `CodecError` when the tensor has values that are not finite, or a type that a reader would take for codes.
    """
    bits = bits_of(name, tensor.shape, tensor.dtype, codec)
    return {name: tensor} if bits is None else encode_rows(name, tensor, bits)


def bits_of(name: str, shape: Sequence[int], dtype: torch.dtype, codec: str) -> int | None:
    """In how many bits a shard of this codec stores the values of a tensor; None: as they are. Raises `CodecError` where it cannot."""
    kind, _ = parse_codec(codec)
    if kind == DROPPED:
        raise CodecError(f"{name}: a dropped block stores nothing")
    if "::" in name:
        raise CodecError(f"{name}: tensor names with :: are kept for scales and offsets")
    if kind not in BITS:
        return None
    if not quantizable(name, shape, dtype):
        if dtype in (torch.int8, torch.uint8):
            raise CodecError(f"{name}: a tensor of {dtype} cannot be stored in codec {codec}, where it would read as codes")
        return None
    return 8 if shape[-1] % 2 else BITS[kind]


def encode_rows(name: str, rows: Tensor, bits: int) -> dict[str, Tensor]:
    """Some rows (along the first dimension) of what is stored for a tensor in so many bits: those of its codes, scales and offsets."""
    try:
        quantized = quantize(rows, bits)
    except CodecError as error:
        raise CodecError(f"{name}: {error.message}") from error
    parts = (quantized.codes, quantized.scales, quantized.offsets)
    return {n: t for n, t in zip(encoded_names(name), parts, strict=True) if t is not None}


def read_encoded(path: Path, codec: str, device: torch.device | str = "cpu") -> dict[str, Tensor | QuantizedTensor]:
    """The tensors of the shard at `path` as they are stored, after checking that they are what `codec` promises.

    Raises `CodecError`, which names the tensor.
    """
    kind, _ = parse_codec(codec)
    try:
        header = read_header(path)
    except HeaderError as error:
        raise CodecError(error.message) from error
    found = header.metadata.get("codec", EXACT)
    parse_codec(found)
    if found != codec:
        raise CodecError(f"{path.name} is in codec {found} where {codec} was expected")
    names = _check_header(header, kind)
    with safe_open(path, "pt", device=str(device)) as file:
        return {name: read_stored(file, name, header) for name in names}


def read_stored(file: TensorSource, name: str, header: Header) -> Tensor | QuantizedTensor:
    """A tensor of a shard with this header as it is stored, in whatever codec."""
    return _read(file, name, header) if name + SCALES in header.tensors else file.get_tensor(name)


def read_dense_rows(path: Path, name: str, index: Tensor) -> Tensor:
    """Rows of a matrix of a shard in float32, in whatever codec it is. They are read, not mapped: what lies between them takes no memory."""
    header = read_header(path)
    codes, scales, offsets = (_read_rows(path, header, n, index) if n in header.tensors else None for n in encoded_names(name))
    assert codes is not None
    if scales is None:
        return codes.to(torch.float32)
    return QuantizedTensor(codes, scales, offsets, 8 if codes.dtype == torch.int8 else 4).dequantize()


def _read_rows(path: Path, header: Header, name: str, index: Tensor) -> Tensor:
    info = header.tensors[name]
    width = info.nbytes // max(1, info.shape[0])
    data = bytearray(len(index) * width)
    with path.open("rb", buffering=0) as file:
        for place, row in enumerate(index.tolist()):
            file.seek(header.data_start + info.begin + row * width)
            file.readinto(memoryview(data)[place * width : (place + 1) * width])
    return torch.frombuffer(data, dtype=DTYPES[info.dtype]).view(len(index), *info.shape[1:])


def names_in(header: Header) -> list[str]:
    """The tensors of a shard, scales and offsets not counted."""
    return [name for name in header.tensors if "::" not in name]


def _check_header(header: Header, kind: str) -> list[str]:
    """The names of the shard's tensors, scales and offsets not counted; refuses what does not belong in a shard of this kind."""
    for name in header.tensors:
        base, colons, part = name.partition("::")
        if not colons:
            continue
        if kind not in BITS or colons + part not in (SCALES, OFFSETS):
            raise CodecError(f"{name}: no such tensor belongs in a shard of codec {kind}")
        if base not in header.tensors or base + SCALES not in header.tensors:
            raise CodecError(f"{name}: there are no codes and scales of {base} to go with it")
    names = names_in(header)
    if kind in BITS:
        for name in names:
            _check_tensor(header, name, kind)
    return names


def _check_tensor(header: Header, name: str, kind: str) -> None:
    codes, scales, offsets = (header.tensors.get(n) for n in encoded_names(name))
    assert codes is not None
    if scales is None:
        if codes.dtype in ("I8", "U8"):
            raise CodecError(f"{name}: codes without scales")
        return
    bits = {"I8": 8, "U8": 4}.get(codes.dtype)
    if bits is None or bits < BITS[kind] or len(codes.shape) < 2:
        raise CodecError(f"{name}: {codes.dtype} {list(codes.shape)} cannot be codes of {kind}")
    if (offsets is not None) != (bits == 4):
        raise CodecError(f"{name}: codes of 4 bits, and only they, have offsets")
    last = codes.shape[-1] * (8 // bits)
    expected = (*codes.shape[:-1], math.ceil(last / GROUP))
    for part in (scales, offsets):
        if part is not None and (part.dtype != "BF16" or part.shape != expected):
            raise CodecError(f"{part.name}: is {part.dtype} {list(part.shape)} where BF16 {list(expected)} was expected")


def _read(file: TensorSource, name: str, header: Header) -> QuantizedTensor:
    codes, scales = file.get_tensor(name), file.get_tensor(name + SCALES)
    offsets = file.get_tensor(name + OFFSETS) if name + OFFSETS in header.tensors else None
    if not bool(((scales > 0) & scales.isfinite()).all()):
        raise CodecError(f"{name}: scales must be finite and greater than zero")
    if offsets is not None and not bool(offsets.isfinite().all()):
        raise CodecError(f"{name}: offsets must be finite")
    return QuantizedTensor(codes, scales, offsets, 8 if codes.dtype == torch.int8 else 4)
