"""Packs a safetensors file losslessly, as a stream: byte planes and zstandard, in chunks of at most 1 MiB.

    MAGIC (8 bytes)
    chunk*  "<BI": byte width of the values, length in bytes before packing; then for each of the `width` planes "<BI": how it is
            held (STORED or ZSTD), length as held, and its bytes. Plane i has byte i, i + width, … of the chunk
    end     "<BQI": 0, total length, CRC-32 of everything before packing

A patch is the same with another magic; its bytes are (new - old) mod 256. Neither side holds more than a few chunks in memory. The CRC
guards against the wrong base and against our own errors; who must trust the bytes checks their digest.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.files.byte_planes import Arithmetic, add
from fedcybgd.shared.files.safetensors_header import DTYPE_BITS, Header, first_header, read_header
from fedcybgd.shared.files.whole_file import whole, write_whole

MAGIC = b"FEDPACK1"
PATCH_MAGIC = b"FEDPTCH1"
CHUNK = 1 << 20
STORED, ZSTD = 0, 1
_LENGTH = struct.Struct("<BI")
_END = struct.Struct("<QI")
SHORTER = "the base of the patch is shorter than the patch"
_LEVEL = 1  # on byte planes, level 3 is slower and no smaller
_WORTH = 0.99  # a plane that does not become smaller than this is stored, and the next ones of its run without a try
_REST = 7
_FRAME_HEAD = 18  # bytes that the header of a zstandard frame has at the most


class PackedError(FedError):
    code = "packed_invalid"


class Readable(Protocol):
    """What is read once, from its beginning on."""

    def read(self, n: int, /) -> bytes: ...


def is_packed(path: Path) -> bool:
    """Whether the file at `path` begins like a packed one (a patch does not count)."""
    with path.open("rb") as file:
        return begins_packed(file)


def begins_packed(file: BinaryIO) -> bool:
    """As `is_packed`, of an open file; it is at its beginning afterwards."""
    file.seek(0)
    begins = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    return begins


def pack(source: Path) -> Iterator[bytes]:
    """The packed bytes of the safetensors file at `source`. Raises `HeaderError` when it is none."""
    with source.open("rb") as file:
        yield from pack_read(read_header(source), file)


def pack_read(header: Header, file: Readable, arithmetic: Arithmetic | None = None) -> Iterator[bytes]:
    """As `pack`, of a file with this header wherever it is."""
    yield MAGIC
    yield from _pack_chunks(_chunks(header, file), arithmetic or Arithmetic())


def unpack(source: Path, target: Path, limit: int) -> None:
    """Write what was packed into `source` to `target`, which is whole or not there.

    Raises `PackedError` when `source` is malformed, cut short, followed by more bytes, or unpacks to more than `limit` bytes.
    """
    with source.open("rb") as packed:
        write_whole(unpacked(packed, limit), target)


def unpack_some(source: Path, target: Path, limit: int, names: Collection[str]) -> None:
    """As `unpack`, but only of the tensors with these names and of what belongs to them (`name::scales`): `target` has holes where others are.

    What is left out is stepped over, and the check sum not looked at: the source is one that was unpacked whole before.
    """
    with source.open("rb") as packed, whole(target) as file:
        header = first_header(unpacked(packed, limit), source.name)
        wanted = [(0, header.data_start)]
        wanted += [
            (header.data_start + t.begin, header.data_start + t.end) for t in header.tensors.values() if t.name.partition("::")[0] in names
        ]
        packed.seek(0)
        decompressor, at = zstandard.ZstdDecompressor(), 0
        for width, length in _heads(packed, MAGIC, limit):
            if any(begin < at + length and at < end for begin, end in wanted):
                file.seek(at)
                file.write(_planes(packed, width, length, decompressor))
            else:
                _step_over(packed, width, length)
            at += length
        _check_end(packed, at)
        file.truncate(at)


def unpacked(packed: BinaryIO, limit: int) -> Iterator[bytes]:
    """What was packed, in chunks of at most 1 MiB; errors as `unpack`, the last of them at the end."""
    return _unpack_chunks(packed, MAGIC, limit)


def unpacked_size(packed: BinaryIO, limit: int, most_chunks: int) -> int:
    """Bytes that are packed, by the lengths that are written there; errors as `unpack`, but for what chunks hold, of which nothing is unpacked.

    More than so many chunks are an error, too: a million of a byte each take as long as a million of a MiB.
    """
    total = 0
    for number, (width, length) in enumerate(_heads(packed, MAGIC, limit)):
        if number >= most_chunks:
            raise PackedError(f"it is packed in more than the {most_chunks} chunks that a file of this size has")
        _step_over(packed, width, length)
        total += length
    _check_end(packed, total)
    return total


def difference(old: Path, new: Path) -> Iterator[bytes]:
    """The packed difference of two safetensors files with the same header. Raises `PackedError` when their headers are unlike."""
    with new.open("rb") as file:
        yield from difference_read(old, _header_bytes(new), read_header(new), file)


def difference_read(old: Path, head: bytes, header: Header, new: Readable, arithmetic: Arithmetic | None = None) -> Iterator[bytes]:
    """As `difference`, to a file with this header, whose bytes are `head`, wherever it is."""
    if _header_bytes(old) != head:
        raise PackedError("a patch needs two files with the same header")
    with old.open("rb") as base:
        yield PATCH_MAGIC
        yield from _pack_chunks(_chunks(header, new), arithmetic or Arithmetic(), base)


def leap(patches: Sequence[Path], header: Header, arithmetic: Arithmetic | None = None) -> Iterator[bytes]:
    """One patch in the place of several in a row, the first step first, between files with this header, of which none has to be there.

    Byte for byte the `difference` from where the first patch starts to where the last one leads. Raises `PackedError` for what are no such patches.
    """
    with contextlib.ExitStack() as stack:
        steps = [stack.enter_context(patch.open("rb")) for patch in patches]
        steps[-1].seek(-_END.size, os.SEEK_END)
        _, crc = _END.unpack(_exactly(steps[-1], _END.size))  # of the file that it leads to
        steps[-1].seek(0)
        limit = header.data_start + max((tensor.end for tensor in header.tensors.values()), default=0)
        by = arithmetic or Arithmetic()
        yield PATCH_MAGIC
        yield from _pack_chunks(_chunks(header, _Sum(steps, limit, by)), by, crc_of_target=crc)


def apply_difference(old: Path, patch: Path, target: Path, limit: int) -> None:
    """Write the file that `patch` makes of `old` to `target`; errors as `unpack`, and when `old` is not the patch's base."""
    with old.open("rb") as base, patch.open("rb") as packed:
        write_whole(_unpack_chunks(packed, PATCH_MAGIC, limit, base), target)


def _header_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(read_header(path).data_start)


def _chunks(header: Header, file: Readable) -> Iterator[tuple[int, int, bytes]]:
    """(number of the run, byte width, bytes) of the whole file: its header, then runs of tensors whose values are equally wide."""
    runs = [[1, header.data_start]]
    for tensor in sorted(header.tensors.values(), key=lambda t: (t.begin, t.end)):
        width = max(1, DTYPE_BITS[tensor.dtype] // 8)
        if runs[-1][0] == width and len(runs) > 1:
            runs[-1][1] += tensor.nbytes
        else:
            runs.append([width, tensor.nbytes])
    for number, (width, left) in enumerate(runs):
        while left:
            data = file.read(min(CHUNK, left))
            if len(data) < min(CHUNK, left):
                raise PackedError("the file became shorter while it was read")
            left -= len(data)
            yield number, width, data


class _Sum:
    """What several patches of one layout add together to each byte: chunk by chunk, as it is asked for."""

    def __init__(self, patches: Sequence[BinaryIO], limit: int, arithmetic: Arithmetic) -> None:
        self._add = arithmetic.add
        self._patches, self._decompressor = [(patch, _heads(patch, PATCH_MAGIC, limit)) for patch in patches], zstandard.ZstdDecompressor()

    def read(self, n: int, /) -> bytes:
        chunks = [_planes(patch, *next(heads, (1, 0)), self._decompressor) for patch, heads in self._patches]
        return reduce(self._add, chunks) if all(len(chunk) == n for chunk in chunks) else b""


def _pack_chunks(
    chunks: Iterable[tuple[int, int, bytes]], arithmetic: Arithmetic, base: BinaryIO | None = None, crc_of_target: int | None = None
) -> Iterator[bytes]:
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    resting: dict[tuple[int, int], int] = {}  # (run, plane) → chunks for which the plane is stored without a try
    total = crc = 0
    for run, width, data in chunks:
        total += len(data)
        crc = zlib.crc32(data, crc)
        coded = data if base is None else arithmetic.subtract(data, _exactly(base, len(data), SHORTER))
        out = [_LENGTH.pack(width, len(data))]
        for i, plane in enumerate(arithmetic.split(coded, width)):
            rest = resting.get((run, i), 0)
            held = plane if rest else compressor.compress(plane)
            if len(held) < _WORTH * len(plane):
                out += [_LENGTH.pack(ZSTD, len(held)), held]
            else:
                resting[run, i] = rest - 1 if rest else _REST
                out += [_LENGTH.pack(STORED, len(plane)), plane]
        yield b"".join(out)
    yield b"\0" + _END.pack(total, crc if crc_of_target is None else crc_of_target)


def _unpack_chunks(packed: BinaryIO, magic: bytes, limit: int, base: BinaryIO | None = None) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor()
    total = crc = 0
    for width, length in _heads(packed, magic, limit):
        data = _planes(packed, width, length, decompressor)
        out = data if base is None else add(data, _exactly(base, length, SHORTER))
        total, crc = total + length, zlib.crc32(out, crc)
        yield out
    _check_end(packed, total, crc)
    if base is not None and base.read(1):
        raise PackedError("the base of the patch is longer than the patch")


def _heads(packed: BinaryIO, magic: bytes, limit: int) -> Iterator[tuple[int, int]]:
    """Byte width and length of each chunk; whoever takes one is past its planes before taking the next."""
    if packed.read(len(magic)) != magic:
        raise PackedError("the file is not packed, or not in a form known here")
    total = 0
    while width := _exactly(packed, 1)[0]:
        (length,) = struct.unpack("<I", _exactly(packed, 4))
        total += length
        if width not in (1, 2, 4, 8) or not 0 < length <= CHUNK or length % width:
            raise PackedError(f"a chunk claims {length} bytes in values of {width}")
        if total > limit:
            raise PackedError(f"the file unpacks to more than the {limit} bytes allowed")
        yield width, length


def _check_end(packed: BinaryIO, total: int, crc: int | None = None) -> None:
    length, check_sum = _END.unpack(_exactly(packed, _END.size))
    if length != total or crc not in (None, check_sum):
        raise PackedError("length or check sum of the unpacked bytes is wrong")
    if packed.read(1):
        raise PackedError("there are bytes after the end")


def _planes(packed: BinaryIO, width: int, length: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    if width == 1:
        return _plane(packed, length, decompressor)
    data = bytearray(length)
    for i in range(width):
        data[i::width] = _plane(packed, length // width, decompressor)
    return bytes(data)


def _step_over(packed: BinaryIO, width: int, length: int) -> None:
    """Past the planes of a chunk, whose lengths are right; whether they are there shows at the end of the file."""
    for _ in range(width):
        how, held = _held(packed, length // width)
        head = _exactly(packed, min(held, _FRAME_HEAD))
        if how == ZSTD:
            _check_frame(head, length // width)
        packed.seek(held - len(head), os.SEEK_CUR)


def _held(packed: BinaryIO, length: int) -> tuple[int, int]:
    """How a plane of so many bytes is held, and in how many."""
    how, held = _LENGTH.unpack(_exactly(packed, _LENGTH.size))
    if (how, held) != (STORED, length) and (how != ZSTD or held >= length):
        raise PackedError(f"a plane of {length} bytes claims to be held in {held}")
    return how, held


def _check_frame(frame: bytes, length: int) -> None:
    """The decompressor reserves what the frame declares and stops there, so that is checked before."""
    try:
        if zstandard.get_frame_parameters(frame).content_size != length:
            raise PackedError("a zstandard frame declares another length than its plane")
    except zstandard.ZstdError as error:
        raise PackedError("a zstandard frame is damaged") from error


def _plane(packed: BinaryIO, length: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    how, held = _held(packed, length)
    frame = _exactly(packed, held)
    if how == STORED:
        return frame
    _check_frame(frame, length)
    try:
        plane = decompressor.decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PackedError("a zstandard frame is damaged") from error
    if len(plane) != length:
        raise PackedError("a zstandard frame is shorter than its plane")
    return plane


def _exactly(file: BinaryIO, n: int, short: str = "the file is cut short") -> bytes:
    data = file.read(n)
    if len(data) < n:
        raise PackedError(short)
    return data
