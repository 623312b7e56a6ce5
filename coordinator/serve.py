"""Runs the coordinator: database, the first operator's key, web server."""

import asyncio
import errno
import ipaddress
import itertools
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy.orm import Session

from fedcybgd.coordinator import common
from fedcybgd.coordinator.app import create_app
from fedcybgd.coordinator.collecting import collect
from fedcybgd.coordinator.db.alone import wait_alone
from fedcybgd.coordinator.db.base import BESIDE, Database, utcnow
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.home import bring_up, full_told, home_id, signing_secret, understood, write_secret
from fedcybgd.coordinator.parts import engine_of
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.services.records import signing
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.walls.connections import Connections
from fedcybgd.coordinator.walls.gate import Gate
from fedcybgd.coordinator.walls.protocol import BoundedProtocol
from fedcybgd.coordinator.walls.tls import Certificate, TlsUnusable, names_in
from fedcybgd.shared.host.machine import raise_open_files
from fedcybgd.shared.host.terminal import log_plainly
from fedcybgd.shared.host.watchdog import Watchdog

GRACE_S = 5
"""Seconds that running requests get when the coordinator is asked to stop; waiting claims are let go at once."""
BELIEVED = "127.0.0.1,::1"
"""Whose X-Forwarded-For is where no proxy is named; left to itself uvicorn asks an environment variable that others set for it"""

EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
OF_CONTAINERS = "/.dockerenv", "/run/.containerenv"
"""Files that Docker and Podman make in every container"""

log = logging.getLogger("fedcoord")
FEWEST_THREADS = 4
MANY = 1000
"""Agents for whom there should be room; below that the coordinator says how few it can serve."""


class CannotListen(CoordinatorError):
    code = "cannot_listen"


class PlainHttpRefused(CoordinatorError):
    code = "plain_http_refused"


class TooFewFiles(CoordinatorError):
    code = "too_few_files"


class Server(uvicorn.Server):
    """Lets the waiting claims go before it waits for open requests, and says when it answers."""

    def __init__(self, config: uvicorn.Config, certificate: Certificate | None = None, connections: int = MANY) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._connections = Connections(connections)
        self.on_ready: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        for listener in sockets or []:
            gate = Gate(listener, self._protocol, self._connections, self._certificate)
            gate.open(self.config.backlog)
            self.servers.append(gate)  # type: ignore[arg-type]
        self._collecting = asyncio.create_task(collect())
        if self.started and self.on_ready is not None:
            self.on_ready()

    def _protocol(self) -> BoundedProtocol:
        return BoundedProtocol(self.config, self.server_state, self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        state = self.config.app.state  # type: ignore[union-attr]
        if hasattr(state, "waiting"):
            state.waiting.close()
            state.feed.close()
        super().handle_exit(sig, frame)


def prepare_home(settings: Settings) -> str | None:
    """Make the database in its home, or bring it to the newest schema; the first operator's key if it is new. Raises what the parts refuse."""
    with full_told(settings.home), understood(settings):
        settings.home.mkdir(parents=True, exist_ok=True)
        settings.common.mkdir(parents=True, exist_ok=True)
        database = Database(settings.url)
        try:
            bring_up(database, settings)
            with database.transaction() as session:
                wait_alone(session.connection())
                common.check(session, settings, home_id(settings.home), utcnow())
                if signing.newest(session) is None:
                    signing.renew(session, signing_secret(settings, make=True), utcnow())
            engine_of(settings)  # before there is a key: only the start that makes one tells of it
            with database.transaction() as session:
                wait_alone(session.connection())
                return _first_key(settings, session)
        finally:
            database.close()


def _first_key(settings: Settings, session: Session) -> str | None:
    """The first operator's key where there was none yet, in a file too before it is true: no key is lost between the two."""
    key = operators.ensure_first(session, utcnow())
    if key is not None:
        write_secret(settings.first_key, key)
    return key


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; binding before anything else says at once when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = "the port is taken (is a coordinator running already?)" if error.errno == errno.EADDRINUSE else str(error)
        raise CannotListen(f"cannot listen on {host}:{port}: {reason}; choose another with --port or FEDCOORD_PORT") from error
    return listener


def certificate_of(settings: Settings) -> Certificate | None:
    """Raises `TlsUnusable` when certificate and key cannot be served with, before anything else is begun."""
    if settings.tls_certificate is None and settings.tls_key is None:
        return None
    if settings.tls_certificate is None or settings.tls_key is None:
        raise TlsUnusable("HTTPS needs both FEDCOORD_TLS_CERTIFICATE and FEDCOORD_TLS_KEY")
    return Certificate(settings.tls_certificate, settings.tls_key)


def check_listening(settings: Settings, certificate: Certificate | None) -> None:
    """Raise `PlainHttpRefused` where keys and deltas would be read on the way, and nobody has said that this is meant."""
    if certificate is None and not is_local(settings.host) and settings.plain_http == "refused" and settings.proxies is None:
        raise PlainHttpRefused(
            f"on {settings.host} other machines can reach this coordinator, and over plain HTTP whoever is on the way reads keys and deltas. "
            "Give --tls-certificate and --tls-key; or name the proxy that speaks HTTPS in front of it (FEDCOORD_PROXIES); "
            "or, where the network itself is trusted, say FEDCOORD_PLAIN_HTTP=allowed"
        )


def agents_served(files: int, threads: int) -> int:
    """How many agents can be connected: SQLite takes three files a connection, each thread may read a blob, and the engine has its pipes."""
    return max(0, files - 3 * (threads + BESIDE) - threads - 64)


def files_needed() -> int:
    """The fewest with which anybody is answered."""
    return next(files for files in itertools.count() if agents_served(files, FEWEST_THREADS) > 0)


def threads_for(files: int, threads: int) -> int:
    """As many as are wanted, if half of all files are left for connections then; else fewer."""
    return next((n for n in range(threads, FEWEST_THREADS, -1) if agents_served(files, n) >= files // 2), FEWEST_THREADS)


def configured(app: FastAPI, settings: Settings, **more: Any) -> uvicorn.Config:
    """How uvicorn serves `app`: no WebSockets, and the bounded protocol in place of its own."""
    return uvicorn.Config(
        app, log_level=settings.log_level.lower(), access_log=False, timeout_keep_alive=75, timeout_graceful_shutdown=GRACE_S, backlog=2048,
        log_config=None, ws="none", http=BoundedProtocol, forwarded_allow_ips=settings.proxies or BELIEVED, server_header=False, **more,
    )  # fmt: skip


def serve(settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM; `ready` is called once it answers."""
    log_plainly(settings.log_level.upper(), "%(asctime)s %(levelname)s %(name)s %(message)s", settings.log_format)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # uvicorn raises the signal that stopped it once more at the end; that it was asked to stop is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    files = raise_open_files()
    if (threads := threads_for(files, settings.threads)) < settings.threads:
        log.warning(
            "this process may have %d files open: %d requests speak to the database at the same time, not %d",
            files,
            threads,
            settings.threads,
        )
        settings = settings.model_copy(update={"threads": threads})
    if (agents := agents_served(files, threads)) == 0:
        raise TooFewFiles(
            f"this process may have {files} files open, too few to answer anybody; allow it {files_needed()} or more, better thousands "
            "(`ulimit -n`, LimitNOFILE= of systemd)"
        )
    if agents < MANY:
        log.warning(
            "this process may have %d files open, enough for about %d agents at the same time; `ulimit -Hn` or LimitNOFILE= allows more",
            files, agents,
        )  # fmt: skip
    watchdog = Watchdog.of()
    app = create_app(settings, watchdog=watchdog)
    server = Server(configured(app, settings), certificate_of(settings), agents)

    def answers() -> None:
        ready()
        watchdog.ready()

    server.on_ready = answers

    def is_told(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return False  # a request that was cut by the stop: that it was is told, and not where it stood
        return app.state.refused is None  # why it does not start is told once, in a line, by whoever called

    logging.getLogger("uvicorn.error").addFilter(is_told)
    try:
        server.run([listener])
    except SystemExit:  # as uvicorn ends where the start failed
        if app.state.refused is None:
            raise
    finally:
        logging.getLogger("uvicorn.error").removeFilter(is_told)
    if app.state.refused is not None:
        raise app.state.refused


def address(settings: Settings, listener: socket.socket, elsewhere: bool = False) -> str:
    """The URL of the coordinator on this machine, or `elsewhere`: by the name of this machine where it listens on all addresses.

    With HTTPS it is a name that the certificate is for, of this machine if that is one of them: hardly any is made for 127.0.0.1.
    """
    port = listener.getsockname()[1]
    host, scheme = settings.host, "http" if settings.tls_certificate is None else "https"
    if host in EVERYWHERE:
        host = socket.gethostname() if elsewhere or scheme == "https" else "127.0.0.1"
    elif scheme == "https" and is_local(host):
        host = "localhost"
    certified = [] if settings.tls_certificate is None else names_in(settings.tls_certificate)
    if certified and host not in certified:
        host = certified[0]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def elsewhere(settings: Settings, listener: socket.socket) -> str:
    """What agents on other machines call it by: its name behind proxies, if it has one. Of a container nobody outside knows its name: by where its port is published."""
    if settings.behind is not None:
        return f"{settings.behind}, or the port that its proxies have there"
    if any(Path(mark).exists() for mark in OF_CONTAINERS) or "KUBERNETES_SERVICE_HOST" in os.environ:
        return f"where port {listener.getsockname()[1]} of this container is published"
    return address(settings, listener, elsewhere=True)


def is_local(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
