"""Bodies of HTTP answers, read no further than they may be long, whatever coding something on the way gave them."""

import math
import time
import zlib
from collections.abc import Iterable, Iterator

from fedcybgd.shared.contract.errors import FedError

PLAIN = ("", "identity")
PIECE = 1 << 20


class BodyInvalid(FedError):
    """A body that is too long, cut short, or in a coding that nobody asked for."""

    code = "body_invalid"


def plain_chunks(chunks: Iterable[bytes], coding: str) -> Iterator[bytes]:
    """The body as it was before a proxy compressed it, in pieces of a MiB at the most: a few bytes never become many at once."""
    if coding.strip().lower() in PLAIN:
        yield from chunks
        return
    if coding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        raise BodyInvalid(f"the answer is in the coding {coding[:40]!r}, which nobody asked for; something on the way changes it")
    unpack = zlib.decompressobj(47)  # gzip or zlib, whichever it is
    try:
        for chunk in chunks:
            while chunk:
                yield unpack.decompress(chunk, PIECE)
                chunk = unpack.unconsumed_tail
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
