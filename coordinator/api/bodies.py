"""Bodies of uploads that go on where they were cut."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from fastapi import Request
from starlette.requests import ClientDisconnect


def announced_length(request: Request) -> int | None:
    """Bytes of the body, as the client says; None: it does not."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdigit() else None


async def hand_on(request: Request, write: Callable[[bytes], Awaitable[None]], piece: int) -> None:
    """Give the body to `write`, a piece of about so many bytes at a time.

    What came before a client hung up, which hears no answer, or before anything failed, is given, too.
    """
    buffer = bytearray()

    async def flush() -> None:
        data = bytes(buffer)
        buffer.clear()  # before it is written: what could not be written must not be tried again, at another offset
        await write(data)

    try:
        with suppress(ClientDisconnect):
            async for chunk in request.stream():
                buffer += chunk
                if len(buffer) >= piece:
                    await flush()
    finally:
        if buffer:
            await flush()
