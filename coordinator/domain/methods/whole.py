"""Whole-model averaging (FedAvg): in a round many agents train all blocks from the same versions, and the mean of their deltas is added."""

import math
import random
from collections.abc import Collection, Sequence, Set

from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.averaging_section import AveragingSection
from fedcybgd.coordinator.domain.exposure import ExposureBudgetTooSmall
from fedcybgd.coordinator.domain.methods.method import Delivered
from fedcybgd.coordinator.domain.outer import Outer
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.schedule import visit_seed
from fedcybgd.coordinator.domain.seat import Seat


class Whole:
    """A seat has all visited blocks, and a round is a cycle. One agent a seat: all agents, or some that are drawn."""

    aggregate: Aggregate = "sum"

    def is_shared(self, spec: RunFile) -> bool:  # noqa: ARG002
        return True

    def weighs_rows(self, spec: RunFile) -> bool:
        return settings_of(spec).weights == "rows"

    def trains_all(self, spec: RunFile) -> bool:  # noqa: ARG002
        return True

    def rounds_per_cycle(self, spec: RunFile, visited: Sequence[str]) -> int:  # noqa: ARG002
        return 1

    def seats(
        self,
        spec: RunFile,
        visited: Sequence[str],
        agents: Sequence[str],
        round: int,
        common: Collection[str],  # noqa: ARG002
        ranking: Sequence[str] = (),  # noqa: ARG002
    ) -> list[Seat]:
        """For the agents that are drawn, in their fixed order; with `first_come` as many for whoever asks first."""
        train = spec.train
        meant_for: Sequence[str | None] = [agents[i] for i in drawn(spec, len(agents), round)]
        if spec.schedule.agents == "first_come":
            meant_for = [None] * len(meant_for)
        return [
            Seat(
                round=round, number=number, cycle=round, blocks=tuple(visited), agent=agent,
                learning_rate=train.learning_rate * train.learning_rate_decay**round,
                always_learning_rate=(train.always_learning_rate or train.learning_rate) * train.always_learning_rate_decay**round,
                seed=visit_seed(spec.seed, round, f"seat {number}"),
            )
            for number, agent in enumerate(meant_for)
        ]  # fmt: skip

    def recorded(self, seats: Sequence[Seat]) -> list[str]:
        return list(seats[0].blocks)

    def weights(self, spec: RunFile, block: str, delivered: Sequence[Delivered], seats: int) -> list[float]:  # noqa: ARG002
        """Their shares of the rows, or the same for each; together as much as they are of the round's seats.

        So a delta that came too late for the others, and is trained again from what they have made, does not count for a round alone.
        Without momentum the outer learning rate is a factor on them.
        """
        part = len(delivered) / seats
        if self.outer(spec) is None:
            part *= settings_of(spec).outer.learning_rate
        rows = sum(one.rows for one in delivered)
        if self.weighs_rows(spec) and rows:
            return [part * one.rows / rows for one in delivered]
        return [part / len(delivered)] * len(delivered)

    def outer(self, spec: RunFile) -> Outer | None:
        said = settings_of(spec).outer
        return Outer(learning_rate=said.learning_rate, momentum=said.momentum, nesterov=said.nesterov) if said.momentum else None

    def check(self, spec: RunFile, visited: Sequence[str], common: Set[str], agents: int | None = None) -> None:  # noqa: ARG002
        limit, needed = spec.exposure.max_exact_blocks, len({*visited, *common})
        if limit is not None and limit < needed:
            raise ExposureBudgetTooSmall(
                f"exposure.max_exact_blocks is {limit}, but under `method: {spec.method}` every agent gets the same {needed} blocks exact",
                limit=limit, common=needed,
            )  # fmt: skip


def settings_of(spec: RunFile) -> AveragingSection:
    said = spec.whole or spec.adapters
    assert said is not None, "a run file of such a method has the section"
    return said


def drawn(spec: RunFile, agents: int, round: int) -> list[int]:
    """Numbers of the agents that train in a round, in order: the fraction of the run file, rounded to the nearest, and one at least."""
    share = settings_of(spec).fraction
    number = max(1, math.floor(share * agents + 0.5))
    return sorted(random.Random(f"{spec.seed}:{round}:agents").sample(range(agents), number))  # noqa: S311 - a draw, not a secret
