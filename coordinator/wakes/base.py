"""How every coordinator on a database hears of what one of them commits; `tests/contract` runs one test class over every implementation."""

from collections.abc import Callable
from typing import Protocol

from fedcybgd.coordinator.db.signals import Signals

Hear = Callable[[Signals], None]


class Wakes(Protocol):
    """News of what a transaction changes reaches whoever hears, once it is committed and never otherwise: once at least, in the order in
    which one thread committed it.

    It is a hint, never the only way: who missed it finds the same in the database, seconds later.
    """

    def hear(self, heard: Hear) -> None:
        """Call `heard` with all news from now on, in whatever thread. What it raises is logged, and hinders nobody else."""
        ...

    def notice(self, news: Signals) -> str | None:
        """What the transaction that causes the news notifies other processes of, with its commit; None: there are no others to tell."""
        ...

    def tell(self, news: Signals) -> None:
        """The transaction that caused it is committed, by this process."""
        ...

    def listens(self) -> bool:
        """False while news of others may be missed. What is kept in memory is not to be relied on then."""
        ...

    def close(self) -> None:
        """Nothing is heard any more."""
        ...
