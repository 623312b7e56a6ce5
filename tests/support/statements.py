"""What is asked of a coordinator's database."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event

from tests.support.live import LiveCoordinator


@contextmanager
def statements(live: LiveCoordinator, mine: bool = False) -> Iterator[list[str]]:
    """What is asked of the database meanwhile; `mine`: by this thread alone."""
    found: list[str] = []
    me = threading.current_thread()

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asking = threading.current_thread()
        if asking is me if mine else not asking.name.startswith(("lane-", "job-leases", "beating")):  # the engine looks for work by itself
            found.append(statement)

    event.listen(live.database.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(live.database.engine, "before_cursor_execute", note)
