"""HTTP/1.1 as uvicorn speaks it, with a head of bounded size, and with an account of what each connection is waiting for."""

import asyncio
import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fedcybgd.coordinator.walls.connections import Guest
from fedcybgd.coordinator.walls.flag import Flag
from fedcybgd.coordinator.walls.zero_copy import Way
from fedcybgd.shared.contract.signatures import CONTENT_DIGEST, SIGNATURE, SIGNATURE_INPUT
from fedcybgd.shared.contract.versions import VERSION
from fedcybgd.shared.contract.words import DAEMON

MOST_HEAD = 64 << 10
MOST_HEADINGS = 100
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
OF_EVERY_AGENT = (
    "Host", "Accept", "Accept-Encoding", "Connection", "User-Agent", "Content-Type", "Content-Length", "Authorization", VERSION, DAEMON,
    CONTENT_DIGEST, SIGNATURE_INPUT, SIGNATURE,
)  # fmt: skip
NAMES = {name.encode(): name.lower().encode() for one in OF_EVERY_AGENT for name in (one, one.lower())}
"""Headings have these names once for all who wait, not once each."""


class BoundedProtocol(HttpToolsProtocol):
    guest: Guest
    handshake: asyncio.Task[None] | None = None
    """while it is under way"""
    _head = 0
    """bytes of the headings that are whole"""
    _begun = 0
    """bytes that came of a head that is not whole yet"""
    _earlier: tuple[RequestResponseCycle, ...] = ()
    """requests that were not answered when the next one came"""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow._is_writable_event = Flag(is_set=True)  # type: ignore[assignment]
        self.guest.heard_at, self.guest.flow = time.monotonic(), self.flow
        if self.guest.closed:  # while it was on its way in
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.guest.leave()
        for cycle in self._earlier:  # uvicorn tells the newest one
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()
        super().connection_lost(exc)

    def close_at_once(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        elif self.handshake is not None:  # without one it is there in a moment, and sees that it is closed
            self.handshake.cancel()

    def data_received(self, data: bytes) -> None:
        guest = self.guest
        guest.heard_at = time.monotonic()
        if guest.head_since is None and guest.body_since is None:
            guest.head_since = guest.heard_at
        super().data_received(data)
        if guest.body_since is not None:
            guest.body_bytes += len(data)
        elif guest.head_since is not None:
            self._begun += len(data)
            if self._begun > MOST_HEAD:
                self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["guest"] = self.guest
        self._head = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value)
        if self._head > MOST_HEAD or len(self.headers) >= MOST_HEADINGS:
            self._refuse()
            return
        if (known := NAMES.get(name)) is not None:
            self.headers.append((known, value))
        else:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        guest = self.guest
        if self.transport.is_closing():
            return
        guest.served += 1
        self._begun = 0
        guest.head_since, guest.body_since, guest.body_bytes, guest.answering = None, guest.heard_at, 0, True
        before = self.cycle
        super().on_headers_complete()
        if before is not None and not before.response_complete:
            self._earlier = (*(cycle for cycle in self._earlier if not cycle.response_complete), before)
        self.cycle.message_event = Flag()  # type: ignore[assignment]  # nobody waits for the other yet
        if self.scope["method"] == "GET":
            self.scope["state"]["way"] = Way(self.transport, self.flow, self.cycle)

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self.guest.body_since = None
        self._head = self._begun = 0
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        guest = self.guest
        guest.answering, guest.idle_since = bool(self.pipeline), time.monotonic()
        if guest.head_since is not None:  # what came of the next request while this one was answered
            guest.head_since = guest.idle_since
        super().on_response_complete()

    def pause_writing(self) -> None:
        self.guest.unread_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.guest.unread_since = None
        super().resume_writing()

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()
