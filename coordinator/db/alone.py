"""What only one process does at a time, of all those that use a database: migrating it, making what there is once, and looking after it."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

STARTING = 0x_FED_C0DE
"""One number for all such steps of this program, among PostgreSQL's advisory locks"""


AUDITING = STARTING + 1
"""And one for the end of the audit log"""
SWEEPING, TIDYING, TELLING = STARTING + 2, STARTING + 3, STARTING + 4
"""And for what a coordinator does for all of them"""
AT_PLACES = STARTING + 5
"""And the first of two numbers for what is done to one of many places; the second is made of the place's name"""


def wait_alone(connection: Connection, key: int = STARTING) -> None:
    """Hold, until this transaction ends, what others wait for at the same place. SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def wait_at(connection: Connection, place: str) -> None:
    """The same for one of many places by its name, of which two seldom wait for each other without need."""
    if connection.dialect.name == "postgresql":
        number = zlib.crc32(place.encode()) - (1 << 31)  # PostgreSQL's are signed
        connection.execute(text("SELECT pg_advisory_xact_lock(:key, :number)"), {"key": AT_PLACES, "number": number})


@contextmanager
def unless_another(engine: Engine, key: int, longest_s: float) -> Iterator[bool]:
    """Whether no other process is at this; none begins it until the block ends. One that hangs in it loses its place after `longest_s`.

    On SQLite there is no other process.
    """
    if engine.dialect.name != "postgresql":
        yield True
        return
    with engine.connect() as connection, connection.begin():
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{longest_s:.0f}s'"))
        yield bool(connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": key}))
