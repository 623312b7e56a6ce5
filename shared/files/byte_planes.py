"""Bytes of a chunk, taken apart into planes and added up: what packing is made of, in plain Python."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_LANES = 1 << 16  # bytes at a time where whole numbers stand for rows of bytes


def split(data: bytes, width: int) -> list[bytes]:
    """The planes of a chunk."""
    return [data] if width == 1 else [data[i::width] for i in range(width)]


# Rows of bytes are added and subtracted as one whole number, without carries between its bytes: the highest bit of each byte is set
# aside and put in by exclusive or (Hacker's Delight, 2nd edition, 2-18).
_HIGH = int.from_bytes(b"\x80" * _LANES, "little")
_LOW = int.from_bytes(b"\x7f" * _LANES, "little")


def subtract(new: bytes, old: bytes) -> bytes:
    """(new - old) mod 256, of two of one length."""
    return b"".join(_lanes(new, old, subtract=True))


def add(patch: bytes, old: bytes) -> bytes:
    """(patch + old) mod 256, of two of one length."""
    return b"".join(_lanes(patch, old, subtract=False))


def _lanes(left: bytes, right: bytes, *, subtract: bool) -> Iterator[bytes]:
    for start in range(0, len(left), _LANES):
        piece = left[start : start + _LANES]
        x, y = int.from_bytes(piece, "little"), int.from_bytes(right[start : start + _LANES], "little")
        if subtract:
            result = ((x | _HIGH) - (y & _LOW)) ^ ((x ^ y ^ _HIGH) & _HIGH)
        else:
            result = ((x & _LOW) + (y & _LOW)) ^ ((x ^ y) & _HIGH)
        yield result.to_bytes(_LANES, "little")[: len(piece)]


@dataclass(frozen=True)
class Arithmetic:
    """How chunks are taken apart, subtracted and added: the same bytes, whoever does it."""

    split: Callable[[bytes, int], Sequence[bytes]] = split
    subtract: Callable[[bytes, bytes], bytes] = subtract
    add: Callable[[bytes, bytes], bytes] = add
