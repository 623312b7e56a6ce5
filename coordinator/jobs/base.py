"""Who does the jobs that wait in the database; `tests/contract` runs one test class over every implementation."""

from collections.abc import Collection
from typing import Protocol


class Jobs(Protocol):
    """Takes jobs as `owner`, each under a lease that it renews, and writes what came of them. Several may use one database.

    Jobs are submitted by being written (`services/records/jobs.py`), in the transaction of what they follow from.
    """

    def start(self) -> None: ...

    def wake(self, lanes: Collection[str]) -> None:
        """Jobs were written for these lanes: look now. Without it they are found within seconds."""
        ...

    def stop(self) -> None:
        """End at once. What is under way is not written any more, and may be done again by anybody."""
        ...
