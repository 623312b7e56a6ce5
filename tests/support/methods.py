"""A method that the product does not have: every agent trains all blocks from the same versions, and the mean of them is taken."""

from collections.abc import Collection, Iterator, Sequence, Set
from contextlib import contextmanager

from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.methods.method import Delivered
from fedcybgd.coordinator.domain.methods.registry import METHODS
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.seat import Seat

NAME = "all-averaged"


class AllAveraged:
    aggregate: Aggregate = "sum"

    def is_shared(self, spec: RunFile) -> bool:
        return True

    def weighs_rows(self, spec: RunFile) -> bool:
        return False

    def trains_all(self, spec: RunFile) -> bool:
        return True

    def rounds_per_cycle(self, spec: RunFile, visited: Sequence[str]) -> int:
        return 1

    def seats(
        self,
        spec: RunFile,
        visited: Sequence[str],
        agents: Sequence[str],
        round: int,
        common: Collection[str],
        ranking: Sequence[str] = (),
    ) -> list[Seat]:
        rate = spec.train.learning_rate
        return [
            Seat(round=round, number=number, cycle=round, blocks=tuple(visited), agent=agent, learning_rate=rate,
                 always_learning_rate=rate, seed=1000 * round + number)
            for number, agent in enumerate(agents)
        ]  # fmt: skip

    def recorded(self, seats: Sequence[Seat]) -> list[str]:
        return list(seats[0].blocks)

    def weights(self, spec: RunFile, block: str, delivered: Sequence[Delivered], seats: int) -> list[float]:
        return [1 / len(delivered)] * len(delivered)

    def outer(self, spec: RunFile) -> None:
        return None

    def check(self, spec: RunFile, visited: Sequence[str], common: Set[str], agents: int | None = None) -> None: ...


@contextmanager
def all_averaged() -> Iterator[str]:
    """The name under which run files can ask for it."""
    METHODS[NAME] = AllAveraged()
    try:
        yield NAME
    finally:
        del METHODS[NAME]
