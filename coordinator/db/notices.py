"""Notices between the processes that use one PostgreSQL database: sent with a transaction (NOTIFY), and heard by one connection (LISTEN)."""

import logging
import random
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import make_url, text
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import LOST_AFTER, BeforeCommit
from fedcybgd.coordinator.db.signals import Signals
from fedcybgd.shared.host.rarely import Rarely

log = logging.getLogger("fedcoord.notices")
MOST_BYTES = 7_900
"""PostgreSQL takes less than 8,000."""
CHANNEL = "fedcoord"
"""Channels are a database's own."""
LOOK_EVERY_S = 5.0
"""So often a connection on which nothing comes is asked whether it is still one."""
AGAIN_FIRST_S, AGAIN_LONGEST_S = 0.5, 5.0
NOTIFY = text("SELECT pg_notify(:channel, :text)")


def sender(notice: Callable[[Signals], str | None]) -> BeforeCommit:
    """Sends with a transaction what `notice` makes of its news: it is heard once that is committed, and never if it is not."""

    def send(news: Signals, session: Session) -> None:
        if (said := notice(news)) is not None:
            session.execute(NOTIFY, {"channel": CHANNEL, "text": said})

    return send


class Notices:
    """A thread with a connection of its own. One that is lost is made again, after a wait that is another for each process."""

    def __init__(self, url: str, heard: Callable[[str], None], connected: Callable[[], None]) -> None:
        """`connected` is called whenever it begins to listen: what was sent before was not heard."""
        # What the driver of the pool understands, and libpq not, is no part of the address: +psycopg.
        self._url = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._given = make_url(url).query
        self._heard, self._connected = heard, connected
        self._ending = threading.Event()
        self._ended, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._loop, name="notices", daemon=True)
        self.listens = False
        """whether notices are heard as they come"""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Nothing is heard any more."""
        self._ending.set()
        self._end.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(1)  # it may hang in a database that does

    def _loop(self) -> None:
        import psycopg

        wait, rarely = AGAIN_FIRST_S, Rarely()
        # A line that is dead is noticed sooner than where a statement may take its time.
        options = {**LOST_AFTER, "tcp_user_timeout": 10_000, "application_name": "fedcoord-notices"}
        options = {name: value for name, value in options.items() if name not in self._given}
        while not self._ending.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, **options) as connection:  # type: ignore[arg-type]
                    connection.execute(f"LISTEN {CHANNEL}")
                    self.listens, wait = True, AGAIN_FIRST_S
                    self._call(self._connected)
                    self._listen(connection)
            except psycopg.Error as error:
                self.listens = False
                if rarely.is_due():
                    reason = str(error).strip().partition("\n")[0]
                    log.warning("news of other coordinators is not heard (%s: %s); it is tried again", type(error).__name__, reason)
            self.listens = False
            self._ending.wait(wait * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            wait = min(2 * wait, AGAIN_LONGEST_S)

    def _listen(self, connection: Any) -> None:
        with selectors.DefaultSelector() as both:
            both.register(connection.fileno(), selectors.EVENT_READ)
            both.register(self._ended, selectors.EVENT_READ)
            while not self._ending.is_set():
                if not both.select(LOOK_EVERY_S):
                    connection.execute("SELECT 1")
                for notice in connection.notifies(timeout=0):
                    self._call(self._heard, notice.payload)

    @staticmethod
    def _call(function: Callable[..., None], *given: str) -> None:
        try:
            function(*given)
        except Exception:
            log.exception("a notice was not taken in; what it says is found in the database later")
