"""Runs the coordinator: database, the first operator's key, web server."""

import errno
import gc
import ipaddress
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from sqlalchemy.orm import Session

from fedcybgd.coordinator.app import create_app
from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.db.alone import wait_alone
from fedcybgd.coordinator.db.base import BESIDE, Database, utcnow
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.home import understood
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.host.machine import raise_open_files
from fedcybgd.shared.host.terminal import log_plainly

GRACE_S = 5
"""Seconds that running requests get when the coordinator is asked to stop; waiting claims are let go at once."""

EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


log = logging.getLogger("fedcoord")
COLLECT = (10_000, 20, 100)
"""New objects before a collection of the youngest; how many of these before one of the middle; and how many of those before a full one."""
MANY = 1000
"""Agents for whom there should be room; below that the coordinator says how few it can serve."""


class CannotListen(CoordinatorError):
    code = "cannot_listen"


class TlsUnusable(CoordinatorError):
    code = "tls_unusable"


class Server(uvicorn.Server):
    """Lets the waiting claims go before it waits for open requests, and says when it answers."""

    on_ready: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # A full collection takes a fifth of a second with a thousand waiting agents, and everybody waits for it. What was imported stays
        # for good and is not looked through; what comes and goes with requests is found by the young collections.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT)
        if self.started and self.on_ready is not None:
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        state = self.config.app.state  # type: ignore[union-attr]
        if hasattr(state, "waiting"):
            state.waiting.close()
        super().handle_exit(sig, frame)


def prepare_home(settings: Settings) -> str | None:
    """Make the database in its home, or bring it to the newest schema; the first operator's key if it is new."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with understood(settings):
        database = Database(settings.url)
        try:
            migrate.upgrade(database.engine)
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


def write_secret(file: Path, secret: str) -> None:
    """A file that its owner alone may read, from the start on."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as opened:
        opened.write(secret + "\n")


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


def check_tls(settings: Settings) -> None:
    """Raise `TlsUnusable` when certificate and key cannot be served with, before anything else is begun."""
    if settings.tls_certificate is None and settings.tls_key is None:
        return
    if settings.tls_certificate is None or settings.tls_key is None:
        raise TlsUnusable("HTTPS needs both FEDCOORD_TLS_CERTIFICATE and FEDCOORD_TLS_KEY")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise TlsUnusable(f"{settings.tls_certificate} with {settings.tls_key} cannot be used for HTTPS: {error}") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; a coordinator that starts by itself needs one that is not")


def agents_served(files: int, threads: int) -> int:
    """How many agents can be connected: SQLite takes three files a connection, each thread may read a blob, and the engine has its pipes."""
    return max(0, files - 3 * (threads + BESIDE) - threads - 64)


def serve(settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM; `ready` is called once it answers."""
    log_plainly(settings.log_level.upper(), "%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = uvicorn.Config(
        create_app(settings), log_level=settings.log_level.lower(), access_log=False, timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S, backlog=2048, ssl_certfile=settings.tls_certificate, ssl_keyfile=settings.tls_key,
    )  # fmt: skip
    # uvicorn raises the signal that stopped it once more at the end; that it was asked to stop is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    files = raise_open_files()
    if (agents := agents_served(files, settings.threads)) < MANY:
        log.warning(
            "this process may have %d files open, enough for about %d agents at the same time; `ulimit -Hn` or LimitNOFILE= allows more",
            files, agents,
        )  # fmt: skip
    server = Server(config)
    server.on_ready = ready
    server.run([listener])


def address(settings: Settings, listener: socket.socket, elsewhere: bool = False) -> str:
    """The URL of the coordinator on this machine, or `elsewhere`: by the name of this machine where it listens on all addresses.

    With HTTPS it is always the name: no certificate is made for 127.0.0.1.
    """
    port = listener.getsockname()[1]
    host, scheme = settings.host, "http" if settings.tls_certificate is None else "https"
    if host in EVERYWHERE:
        host = socket.gethostname() if elsewhere or scheme == "https" else "127.0.0.1"
    elif scheme == "https" and is_local(host):
        host = "localhost"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_local(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
