"""Block cycle: each round trains one block, or a wave of blocks, each by one agent; a cycle visits every block once."""

from collections.abc import Collection, Sequence, Set

from fedcybgd.coordinator.domain import exposure
from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.methods.method import Delivered
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.schedule import cycle_of, cycle_order, planned, visit_seed
from fedcybgd.coordinator.domain.seat import Seat
from fedcybgd.shared.contract.block_names import HEAD


class BlockCycle:
    """A seat has one block. What one agent trained is added as it is, damped; what several trained along is averaged."""

    aggregate: Aggregate = "sum"

    def is_shared(self, spec: RunFile) -> bool:
        return spec.schedule.widest > 1

    def weighs_rows(self, spec: RunFile) -> bool:  # noqa: ARG002
        return False

    def trains_all(self, spec: RunFile) -> bool:  # noqa: ARG002
        return False

    def rounds_per_cycle(self, spec: RunFile, visited: Sequence[str]) -> int:
        """A wave larger than the number of blocks makes one round of a cycle."""
        return -(-len(visited) // spec.schedule.wave)

    def seats(
        self,
        spec: RunFile,
        visited: Sequence[str],
        agents: Sequence[str],
        round: int,
        common: Collection[str],
        ranking: Sequence[str] = (),
    ) -> list[Seat]:
        """The cycle's order, cut into pieces of so many blocks as its waves have. Block i (of the n-agent run, in model order) goes to

        fixed:      agent i mod n (the paper's: a client is responsible for a block);
        rotating:   in cycle c, agent (i + c mod t) mod n, so that every block sees every partition in time;
        first_come: to whoever asks first.

        t is n, or as many as the exposure budget allows (`exposure.team_size`). In a wave nobody gets two while that can be avoided.
        """
        cycle, place = cycle_of(lambda of: self.rounds_per_cycle(of, visited), spec, round)
        wave, train = spec.in_cycle(cycle).schedule.wave, spec.train
        piece = cycle_order(spec, visited, cycle, ranking)[place * wave : (place + 1) * wave]
        meant_for: Sequence[str | None] = [None] * len(piece)
        if spec.schedule.agents != "first_come":
            meant_for = [agents[i] for i in planned(spec, visited, len(agents), cycle, piece, common)]
        return [
            Seat(
                round=round, number=number, cycle=cycle, blocks=(block,), agent=agent,
                learning_rate=train.learning_rate * train.learning_rate_decay**cycle,
                always_learning_rate=(train.always_learning_rate or train.learning_rate) * train.always_learning_rate_decay**cycle,
                seed=visit_seed(spec.seed, round, block),
            )
            for number, (block, agent) in enumerate(zip(piece, meant_for, strict=True))
        ]  # fmt: skip

    def recorded(self, seats: Sequence[Seat]) -> list[str]:
        return [seat.block for seat in seats]

    def weights(self, spec: RunFile, block: str, delivered: Sequence[Delivered], seats: int) -> list[float]:  # noqa: ARG002
        """The mean, damped: one for a visited block, so many for one that was trained along by all. The head of a wave may be undamped."""
        schedule = spec.schedule
        damped = block not in schedule.always or block != HEAD or schedule.wave == 1 or spec.head_average == "damped"
        return [(schedule.damping if damped else 1.0) / len(delivered)] * len(delivered)

    def outer(self, spec: RunFile) -> None:  # noqa: ARG002
        return None

    def check(self, spec: RunFile, visited: Sequence[str], common: Set[str], agents: int | None = None) -> None:
        exposure.check_exposure(spec, visited, common, agents)
