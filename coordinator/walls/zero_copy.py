"""ASGI's extension for bytes of files, which uvicorn has not got: the kernel passes them on, and no copy of them is made in this process."""

import asyncio
import os

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

ZERO_COPY = "http.response.zerocopysend"
CHUNK = 1 << 20
FILLER = 16 << 10
"""What the transport is given where the connection takes no more: it waits for room, and it tells of who is slow and who has gone."""
NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
"""None where the system does not tell what is in memory"""


class Way:
    """From files to whoever made one request."""

    __slots__ = ("_cycle", "_flow", "_straight", "_transport", "passed")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl, cycle: RequestResponseCycle) -> None:
        self._transport, self._flow, self._cycle = transport, flow, cycle
        self._straight = NOWAIT is not None and transport.get_extra_info("sslcontext") is None
        """else the bytes are read, and written to the transport"""
        self.passed = 0
        """bytes of files that went out, whatever came then"""

    async def send(self, file: int, offset: int, count: int) -> None:
        """Part of a body, after its head. Raises `ClientDisconnect`, and `EOFError` where the file ends before."""
        end = offset + count
        if self._straight and not self._transport.is_closing():
            self._transport.set_write_buffer_limits(high=0)  # to drain it is to empty it, for the rest of this connection
        await self._drained()
        while offset < end:
            step, sent, data = min(CHUNK, end - offset), 0, b""
            if not self._straight or not _in_memory(file, offset + step - 1):
                data = await run_in_threadpool(os.pread, file, step, offset)
                await self._drained()
            elif (sent := self._pass_on(file, offset, step)) < step:
                data = os.pread(file, min(FILLER, step - sent), offset + sent)
            if not sent and not data:
                raise EOFError("the file became shorter while it was sent")
            if data:
                self._transport.write(data)
            offset += sent + len(data)
            self.passed += sent + len(data)
            self._cycle.expected_content_length -= sent + len(data)
            await asyncio.sleep(0)  # who reads fast is not to be the only one who does
            try:
                await self._drained()
            except BaseException:
                self.passed -= min(len(data), self._transport.get_write_buffer_size())
                raise

    def _pass_on(self, file: int, offset: int, count: int) -> int:
        """How much of it the connection took at once."""
        try:
            return os.sendfile(self._transport.get_extra_info("socket").fileno(), file, offset, count)
        except OSError:  # it is full; or it is broken, which the transport notices when it is written to
            return 0

    async def _drained(self) -> None:
        """Nothing lies in the transport, where bytes go past it: they come after all that was written to it."""
        if not self._transport.is_closing():
            await self._flow.drain()
        if self._transport.is_closing():  # its number is another connection's in a moment
            await asyncio.sleep(0)  # in which uvicorn learns that nobody hears it
            raise ClientDisconnect


def _in_memory(file: int, place: int) -> bool:
    """Whether a byte of it is there without waiting for a disk; what is before it was read before."""
    assert NOWAIT is not None
    try:
        return os.preadv(file, [bytearray(1)], place, NOWAIT) == 1
    except OSError:  # it is not, or a file system does not tell
        return False


class ZeroCopy:
    """Offers the extension where a connection has a way for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way: Way | None = scope.get("state", {}).pop("way", None)
        if way is None:
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] != ZERO_COPY:
                await send(message)
                return
            await way.send(message["file"], message["offset"], message["count"])
            if not message.get("more_body", False):
                await send({"type": "http.response.body"})

        await self._app({**scope, "extensions": {**scope.get("extensions", {}), ZERO_COPY: {"passed": lambda: way.passed}}}, receive, sent)
