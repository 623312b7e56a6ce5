"""What a federated method decides. Everything else is the same for all of them."""

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.outer import Outer
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.seat import Seat
from fedcybgd.shared.contract.training import TrainMetrics


@dataclass(frozen=True)
class Delivered:
    """An accepted delta: of which seat it is, and what its agent said of the training."""

    seat: int
    metrics: TrainMetrics | None
    rows: int
    """that it was trained on, as far as its agent is believed"""
    moved: Sequence[int] | None = None
    """the labels whose rows of the head it moves, where that was looked at"""


class Method(Protocol):
    """Pure: the same arguments give the same answer, in every process and after every restart."""

    aggregate: Aggregate
    """how the deltas of a block become its change"""

    def is_shared(self, spec: RunFile) -> bool:
        """Whether rounds of the run may have several seats, which are for different agents while that can be had."""
        ...

    def weighs_rows(self, spec: RunFile) -> bool:
        """Whether weights go by the rows that agents say: who hides how many there are can take no part."""
        ...

    def trains_all(self, spec: RunFile) -> bool:
        """Whether every visit trains all visited blocks."""
        ...

    def rounds_per_cycle(self, spec: RunFile, visited: Sequence[str]) -> int:
        """Of a cycle for which `spec` is what the run file says (`RunFile.in_cycle`).

        `visited` are the blocks that the run trains (in model order), without those that are only trained along."""
        ...

    def seats(
        self,
        spec: RunFile,
        visited: Sequence[str],
        agents: Sequence[str],
        round: int,
        common: Collection[str],
        ranking: Sequence[str] = (),
    ) -> list[Seat]:
        """The seats of round number `round`, counted from 0 over the whole run, by their numbers. `spec` is the run file itself.

        `agents` are the participants in a fixed order; `common` are the blocks that every agent gets exact, whatever it trains; `ranking` are
        the visited blocks by importance, where that was measured.
        """
        ...

    def recorded(self, seats: Sequence[Seat]) -> list[str]:
        """The blocks that a round is said to be of, to people."""
        ...

    def weights(self, spec: RunFile, block: str, delivered: Sequence[Delivered], seats: int) -> list[float]:
        """One for each delta of a block, in the order of seats, of which the round has `seats`; those that did not come in time are not among them.

        `spec` is what the run file says of the round's cycle.
        """
        ...

    def outer(self, spec: RunFile) -> Outer | None:
        """The optimizer whose step is added; None: the change is added as it is."""
        ...

    def check(self, spec: RunFile, visited: Sequence[str], common: Set[str], agents: int | None = None) -> None:
        """Raise for a run that cannot be trained within its exposure budget: before the start for any number of agents, then for so many."""
        ...
