"""Takes connections: the handshake of TLS within its time, an account of everybody, and room for files when there is none left."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable

from fedcybgd.coordinator.walls.connections import HEAD_S, Connections, Guest, neighbourhood
from fedcybgd.coordinator.walls.protocol import BoundedProtocol
from fedcybgd.coordinator.walls.tls import Certificate

log = logging.getLogger("fedcoord")
AT_ONCE = 100
LOOK_EVERY_S = 1.0
NO_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
PAUSE_S = 0.05


class Gate:
    """Instead of `loop.create_server`, which counts nobody whose handshake is not over, and waits for a minute on it."""

    def __init__(
        self,
        listener: socket.socket,
        new_protocol: Callable[[], BoundedProtocol],
        connections: Connections,
        certificate: Certificate | None,
    ) -> None:
        self._listener = listener
        self._new_protocol = new_protocol
        self._connections = connections
        self._certificate = certificate
        self._loop = asyncio.get_running_loop()
        self._entering: set[asyncio.Task[None]] = set()
        self._look: asyncio.TimerHandle | None = None

    def open(self, backlog: int) -> None:
        self._listener.setblocking(False)
        self._listener.listen(backlog)
        self._loop.add_reader(self._listener.fileno(), self._take)
        self._look = self._loop.call_later(LOOK_EVERY_S, self._close_overdue)

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
        if self._look is not None:
            self._look.cancel()
        for task in self._entering:
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._entering, return_exceptions=True)

    def _take(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in NO_FILES:
                    log.warning("a connection could not be taken: %s", error)
                    return
                self._connections.make_room()
                self._pause()
                return
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._let_in(sock, neighbourhood(str(peer[0])) if peer else "")

    def _pause(self) -> None:
        """What was closed is given back by the kernel a moment later; without a pause the loop would do nothing else meanwhile."""
        self._loop.remove_reader(self._listener.fileno())

        def again() -> None:
            if self._listener.fileno() >= 0:
                self._loop.add_reader(self._listener.fileno(), self._take)

        self._loop.call_later(PAUSE_S, again)

    def _let_in(self, sock: socket.socket, address: str) -> None:
        protocol = self._new_protocol()
        protocol.guest = Guest(address, time.monotonic(), protocol.close_at_once, self._connections)
        task = self._loop.create_task(self._enter(sock, protocol))
        if self._certificate is not None:
            protocol.handshake = task
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)
        self._connections.came(protocol.guest)

    async def _enter(self, sock: socket.socket, protocol: BoundedProtocol) -> None:
        context = None if self._certificate is None else self._certificate.context()
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=context, ssl_handshake_timeout=None if context is None else HEAD_S
            )
        except (OSError, ssl.SSLError, TimeoutError, asyncio.CancelledError, RuntimeError):
            if protocol.transport is None:
                protocol.guest.leave()
                sock.close()
        finally:
            protocol.handshake = None

    def _close_overdue(self) -> None:
        self._connections.close_overdue()
        self._look = self._loop.call_later(LOOK_EVERY_S, self._close_overdue)
