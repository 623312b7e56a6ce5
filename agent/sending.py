"""Gets the bytes of a delta through to the coordinator, also past what lets only small bodies or short requests through."""

from collections.abc import Callable
from pathlib import Path

from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import ProxyBodyLimit, Unreachable

SMALLEST = 16 << 10
"""A proxy that takes less than this is waited for: a person has to raise its limit."""
SHORT = 1 << 20
"""Pieces are not made smaller than this because of cuts alone."""


def send_file(client: Client, assignment_id: str, digest: str, path: Path, told: Callable[[Exception], None]) -> None:
    """Upload what has not arrived yet, in pieces as large as they are let through.

    `told` hears of every piece that was too large. Raises `ProxyBodyLimit` when even the smallest is.
    """
    size = path.stat().st_size
    arrived = client.upload_offset(assignment_id, digest)
    while not arrived.complete and arrived.offset < size:
        begin = arrived.offset
        length = min(size - begin, client.piece or size)
        try:
            arrived = client.upload(assignment_id, digest, path, begin, length)
        except ProxyBodyLimit as error:
            told(error)
            if length <= SMALLEST:
                raise
            client.piece = max(SMALLEST, _half(length))
        except Unreachable:
            # Cut, and nothing was kept: a proxy that reads bodies whole before it hands them on, and ends requests that take long.
            if client.upload_offset(assignment_id, digest).offset == begin and length > SHORT:
                client.piece = max(SHORT, _half(length))
            raise


def _half(length: int) -> int:
    """The largest power of two below `length`."""
    return 1 << ((length - 1).bit_length() - 1)
