"""What is asked of a coordinator's database."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event

from tests.support.live import LiveCoordinator


@contextmanager
def statements(live: LiveCoordinator) -> Iterator[list[str]]:
    """What is asked of the database meanwhile."""
    found: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not threading.current_thread().name.startswith(("lane-", "job-leases", "beating")):  # the engine looks for work by itself
            found.append(statement)

    event.listen(live.database.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(live.database.engine, "before_cursor_execute", note)
