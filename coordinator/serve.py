"""Runs the coordinator: database, operator's key, web server."""

import errno
import logging
import signal
import socket
from types import FrameType

import uvicorn

from coordinator.app import create_app
from coordinator.db import migrate
from coordinator.db.base import Database, utcnow
from coordinator.errors import CoordinatorError
from coordinator.services import operators
from coordinator.settings import Settings

GRACE_S = 5
"""Seconds that running requests get when the coordinator is asked to stop; waiting claims are let go at once."""


class CannotListen(CoordinatorError):
    code = "cannot_listen"


class Server(uvicorn.Server):
    """Lets the waiting claims go before it waits for open requests."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        state = self.config.app.state  # type: ignore[union-attr]
        if hasattr(state, "waiting"):
            state.waiting.close()
        super().handle_exit(sig, frame)


def prepare_home(settings: Settings) -> str | None:
    """Make the home directory and the database; the operator's key if it is new."""
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.home.chmod(0o700)
    database = Database(settings.url)
    try:
        migrate.upgrade(database.engine)
        with database.transaction() as session:
            return operators.ensure_key(session, utcnow())
    finally:
        database.close()


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


def serve(settings: Settings, listener: socket.socket) -> None:
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = uvicorn.Config(
        create_app(settings), log_level=settings.log_level.lower(), access_log=False, timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S, backlog=2048,
    )  # fmt: skip
    # uvicorn raises the signal that stopped it once more at the end; that it was asked to stop is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    Server(config).run([listener])


def address(settings: Settings, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    host = settings.host if settings.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
