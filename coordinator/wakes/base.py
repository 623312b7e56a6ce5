"""How every coordinator on a database hears of what one of them committed; `tests/contract` runs one test class over every implementation."""

from collections.abc import Callable
from typing import Protocol

from fedcybgd.coordinator.db.signals import Signals

Hear = Callable[[Signals], None]


class Wakes(Protocol):
    """News is told after its commit, from any thread, and reaches whoever hears: once at least, in the order in which one thread told it.

    It is a hint, never the only way: who missed it finds the same in the database, seconds later.
    """

    def hear(self, heard: Hear) -> None:
        """Call `heard` with all news from now on, in whatever thread. What it raises is logged, and hinders nobody else."""
        ...

    def tell(self, news: Signals) -> None: ...

    def close(self) -> None:
        """Nothing is heard any more."""
        ...
