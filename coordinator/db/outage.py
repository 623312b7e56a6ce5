"""Tells a database that is away for a while from a mistake of ours."""

import logging
import sqlite3
import time
from collections.abc import Callable

from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, InternalError, OperationalError, SQLAlchemyError, TimeoutError

from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.shared.host.rarely import Rarely

log = logging.getLogger("fedcoord.database")
DISK_FULL = "53100"
"""PostgreSQL's code"""
OVERTAKEN = frozenset({"40001", "40P01"})
"""PostgreSQL's codes of a transaction that stood in another's way: serialization failure, deadlock."""


class DatabaseAway(CoordinatorError):
    code = "database_away"
    status = 503

    def __init__(self, error: BaseException) -> None:
        what = "the disk of the coordinator's database is full" if is_full(error) else "the coordinator's database is away"
        super().__init__(f"{what}; nothing was changed that was not answered. Ask again later")


def is_away(error: BaseException) -> bool:
    """Whether the same may work later: a lost connection, a full or locked database, a server that starts."""
    if isinstance(error, TimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
        return False  # bad SQL, which SQLite counts among what may pass
    passing = isinstance(error, OperationalError | InterfaceError | InternalError) or type(error) is DatabaseError
    return passing or error.connection_invalidated


def was_overtaken(error: BaseException) -> bool:
    """Whether the transaction was undone for another's sake, and will do when it is run again."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in OVERTAKEN


def reason(error: BaseException) -> str:
    """What happened, in a line for people: never the statement."""
    if isinstance(error, SQLAlchemyError):
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
    return f"{type(error).__name__}: {error}"


def is_full(error: BaseException) -> bool:
    """Whether it is away because its disk is full."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    return getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or getattr(cause, "sqlstate", None) == DISK_FULL


class OutageLog:
    """Says that the database is away, ever more rarely, however many ask it for something: its disk may be the full one."""

    def __init__(self, full: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`full` is called where that is why."""
        self._rarely, self._full = Rarely(clock), full

    def say(self, error: BaseException) -> None:
        if is_full(error):
            self._full()
        if self._rarely.is_due():
            log.warning("the database is away (%s); whoever asked tries again", reason(error))
