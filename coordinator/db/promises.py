"""What is promised to somebody outside is on the disk before it is answered: a power cut takes back no revocation, key or receipt.

PostgreSQL syncs at every commit by itself. SQLite in WAL mode syncs when it moves its log into the database, so what was committed
last may be lost; everything else (renewals, signs of life, results of jobs) is found out again, and waits for no disk.
"""

import contextlib
import os
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import Session

_KEY = "promised"


def promise(session: Session) -> None:
    """What this transaction commits must outlast the machine."""
    session.info[_KEY] = True


def promised(session: Session) -> bool:
    return _KEY in session.info


def keep(engine: Engine) -> None:
    """Return when all that was committed is on the disk."""
    if engine.dialect.name != "sqlite" or engine.url.database is None:
        return
    with contextlib.suppress(FileNotFoundError):  # the last connection was closed: everything is in the database, and synced
        descriptor = os.open(Path(f"{engine.url.database}-wal"), os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
