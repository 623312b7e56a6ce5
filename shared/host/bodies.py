"""Bodies of HTTP answers, read no further than they may be long, whatever coding something on the way gave them."""

import itertools
import math
import time
import zlib
from collections.abc import Iterable, Iterator

from fedcybgd.shared.contract.errors import FedError

PLAIN = ("", "identity", "none", "aws-chunked")
"""The last is what object storages say of bytes that were uploaded so, and are plain again"""
PACKED = ("gzip", "x-gzip", "deflate")
MOST_CODINGS = 3
GZIP = b"\x1f\x8b"
GZIP_BITS = zlib.MAX_WBITS + 16
PIECE = 1 << 20


class BodyInvalid(FedError):
    """A body that is too long, cut short, or in a coding that nobody asked for."""

    code = "body_invalid"


def plain_chunks(chunks: Iterable[bytes], coding: str) -> Iterator[bytes]:
    """The body as it was before a proxy compressed it, in pieces of a MiB at the most: a few bytes never become many at once.

    What is not what it is said to be, because a proxy has unpacked it and left the heading, is given as it is.
    """
    codings = [one.strip().lower() for one in coding.split(",")]
    wrong = [one for one in codings if one not in (*PLAIN, *PACKED)]
    if wrong or len(codings) > MOST_CODINGS:
        raise BodyInvalid(f"the answer is in the coding {coding[:40]!r}, which nobody asked for; something on the way changes it")
    for one in reversed(codings):
        chunks = chunks if one in PLAIN else _unpacked(chunks, one)
    yield from chunks


def _unpacked(chunks: Iterable[bytes], coding: str) -> Iterator[bytes]:
    left, head = iter(chunks), b""
    while len(head) < len(GZIP) and (chunk := next(left, None)) is not None:
        head += chunk
    is_gzip = head.startswith(GZIP)
    if not is_gzip and coding != "deflate":
        yield from itertools.chain([head] if head else [], left)
        return
    is_zlib = len(head) > 1 and head[0] & 15 == 8 and int.from_bytes(head[:2]) % 31 == 0
    bits = GZIP_BITS if is_gzip else zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS  # many servers mean the bare stream by "deflate"
    unpack = zlib.decompressobj(bits)
    try:
        for piece in itertools.chain([head], left):
            while piece:
                if unpack.eof:  # another one may follow the first
                    if not is_gzip or piece[:1] != GZIP[:1]:
                        break
                    unpack = zlib.decompressobj(bits)
                yield unpack.decompress(piece, PIECE)
                piece = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
        yield unpack.flush()
    except zlib.error as error:
        raise BodyInvalid(f"the answer is said to be {coding[:40]}, and is not: {error}") from error


def whole(chunks: Iterable[bytes], coding: str, limit: int, seconds: float = math.inf) -> bytes:
    """A whole body. Raises `BodyInvalid` as soon as it has more than `limit` bytes, as it came or unpacked, or takes longer than `seconds`."""
    found = bytearray()
    began = time.monotonic()
    for piece in plain_chunks(_bounded(chunks, limit), coding):
        found += piece
        if time.monotonic() - began > seconds:
            raise BodyInvalid(f"the answer has come for more than {seconds:g} s, and has no end yet")
        if len(found) > limit:
            raise BodyInvalid(f"the answer has more than {limit} bytes")
    return bytes(found)


def _bounded(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    have = 0
    for chunk in chunks:
        have += len(chunk)
        if have > limit:
            raise BodyInvalid(f"the answer has more than {limit} bytes")
        yield chunk
