"""Reads and writes safetensors headers, so that files can be checked, split and joined without loading a tensor.

The layout is that of the safetensors format: eight bytes of little-endian length, a JSON object, then the tensors' bytes
without gaps. We pad the JSON with spaces so that the data starts at a multiple of 64 bytes: kernels then see the same
alignment in every process, which is part of why a repeated run is bit-identical.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO

from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.files.stand_ins import HEAD, stand_in

ALIGNMENT = 64
MAX_HEADER = 100_000_000  # the format's own limit, in bytes
MAX_NUMBER = 2**62  # of elements or bytes; readers hold them in 64 bits
CHUNK = 1 << 20

DTYPE_BITS = {
    "C64": 64, "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; `begin` and `end` count bytes from the start of the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    tensors: dict[str, TensorInfo]
    data_start: int
    """Offset of the data section in the file, in bytes."""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def file_size(self) -> int:
        return self.data_start + max((t.end for t in self.tensors.values()), default=0)


def tensor_nbytes(dtype: str, shape: Iterable[int]) -> int:
    if dtype not in DTYPE_BITS:
        raise HeaderError(f"unknown dtype {dtype!r}; known are {', '.join(sorted(DTYPE_BITS))}")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8:
        raise HeaderError(f"{dtype} numbers of the shape {list(shape)} fill no whole bytes")
    return bits // 8


def read_header(path: Path) -> Header:
    """Read and verify the header of the file at `path`.

    Raises `HeaderError` when the file is not safetensors, is cut short or too long, or when its tensors overlap or leave gaps.
    """
    with path.open("rb") as file:
        return header_of(file, path.name)


def header_of(file: BinaryIO, name: str, most: int = MAX_HEADER) -> Header:
    """As `read_header`, of an open file; a header of more than `most` bytes is not parsed. What is no safetensors file is called what it is."""
    size = file.seek(0, SEEK_END)
    file.seek(0)
    try:
        length = _length(file.read(8), size, name, most)
        return _whole(parse_header(file.read(length), name), size, name)
    except HeaderError as error:
        file.seek(0)
        if (what := stand_in(file.read(HEAD))) is not None:
            raise HeaderError(f"{name} is no safetensors file: it is {what}") from error
        raise


def first_header(chunks: Iterable[bytes], name: str, most: int = MAX_HEADER, size: int | None = None) -> Header:
    """As `header_of`, of a file that comes in chunks, of which no more are taken than the header needs.

    `size`: of the whole file, where it is known; else it is not looked at whether the file is whole.
    """
    begun, end = bytearray(), 8
    for chunk in chunks:
        begun += chunk
        if len(begun) >= 8:
            end = 8 + _length(bytes(begun[:8]), size, name, most)
        if len(begun) >= end:
            header = parse_header(bytes(begun[8:end]), name)
            return header if size is None else _whole(header, size, name)
    raise HeaderError(f"{name} is cut short within its header")


def _length(head: bytes, size: int | None, name: str, most: int) -> int:
    """Of the header, by the first eight bytes of a file of `size` bytes; None: nobody knows yet."""
    if len(head) < 8:
        raise HeaderError(f"{name} is no safetensors file: it has only {size} bytes")
    length = int.from_bytes(head, "little")
    if length > MAX_HEADER or (size is not None and length + 8 > size):
        of = f" in a file of {size}" if size is not None else ""
        raise HeaderError(f"{name} is no safetensors file, or it is cut short: header of {length} bytes{of}")
    if length > most:
        raise HeaderError(f"{name} has a header of {length} bytes, where {most} are enough")
    return length


def _whole(header: Header, size: int, name: str) -> Header:
    if header.file_size != size:
        raise HeaderError(f"{name} has {size} bytes where its header asks for {header.file_size}")
    return header


def parse_header(raw: bytes, source: str = "safetensors header") -> Header:
    """At least as strict as the safetensors library: what is accepted here can be opened there."""
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        # Neither NaN and Infinity nor half of a surrogate pair are JSON, though Python reads them.
        json.dumps(entries, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{source}: the header is no JSON") from error
    if not isinstance(entries, dict):
        raise HeaderError(f"{source}: the header is no JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError(f"{source}: __metadata__ must map strings to strings")
    tensors = {name: _parse_tensor(name, entry, source) for name, entry in entries.items()}
    position = 0
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.end)):
        if tensor.begin != position:
            raise HeaderError(f"{source}: tensor {tensor.name} starts at byte {tensor.begin} where {position} was expected")
        position = tensor.end
    return Header(tensors, 8 + len(raw), metadata)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name is there twice")
    return entries


def _parse_tensor(name: str, entry: object, source: str) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **more} if (
            not more
            and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in [*shape, begin, end])
            and math.prod(max(n, 1) for n in shape) < MAX_NUMBER
        ):
            if tensor_nbytes(dtype, shape) != end - begin:
                raise HeaderError(
                    f"{source}: tensor {name} has {end - begin} bytes where {dtype} {shape} needs {tensor_nbytes(dtype, shape)}"
                )
            return TensorInfo(name, dtype, tuple(shape), begin, end)
    raise HeaderError(f"{source}: the entry of tensor {name} is malformed")


def pack_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes before the data section, length included, for (name, dtype, shape) in the order in which their data follow."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        end = position + tensor_nbytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    return len(raw).to_bytes(8, "little") + raw


def copy_tensor(file: BinaryIO, header: Header, name: str) -> Iterator[bytes]:
    """The bytes of one tensor in chunks of at most 1 MiB."""
    tensor = header.tensors[name]
    file.seek(header.data_start + tensor.begin)
    left = tensor.nbytes
    while left:
        chunk = file.read(min(CHUNK, left))
        if not chunk:
            raise HeaderError(f"the file ended {left} bytes before the end of tensor {name}")
        left -= len(chunk)
        yield chunk
