"""Class means: before the rounds of another method one in which every agent trains the head alone, beginning at the means of its rows."""

from collections.abc import Collection, Sequence, Set

from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.methods.method import Delivered, Method
from fedcybgd.coordinator.domain.outer import Outer
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.schedule import visit_seed
from fedcybgd.coordinator.domain.seat import Seat
from fedcybgd.shared.contract.block_names import HEAD


class HeadFirst:
    """All features are those of the base model in that round, so the head that is put together of all tells labels apart that no agent has both of."""

    def __init__(self, then: Method) -> None:
        self._then = then
        self.aggregate: Aggregate = then.aggregate

    def is_shared(self, spec: RunFile) -> bool:  # noqa: ARG002
        return True

    def weighs_rows(self, spec: RunFile) -> bool:
        return self._then.weighs_rows(spec)

    def trains_all(self, spec: RunFile) -> bool:
        return self._then.trains_all(spec)

    def rounds_per_cycle(self, spec: RunFile, visited: Sequence[str]) -> int:
        return self._then.rounds_per_cycle(spec, visited)

    def seats(
        self,
        spec: RunFile,
        visited: Sequence[str],
        agents: Sequence[str],
        round: int,
        common: Collection[str],
        ranking: Sequence[str] = (),
    ) -> list[Seat]:
        """First one for each agent, then those of the other method, from its round 0 on."""
        if round:
            later = self._then.seats(spec, visited, agents, round - 1, common, ranking)
            return [seat.model_copy(update={"round": round}) for seat in later]
        rate = spec.train.always_learning_rate or spec.train.learning_rate
        return [
            Seat(
                round=0, number=number, cycle=0, blocks=(HEAD,), agent=None if spec.schedule.agents == "first_come" else agent,
                learning_rate=rate, always_learning_rate=rate, seed=visit_seed(spec.seed, 0, f"head {number}"), head_start=spec.schedule.head_start,
            )
            for number, agent in enumerate(agents)
        ]  # fmt: skip

    def recorded(self, seats: Sequence[Seat]) -> list[str]:
        return [HEAD] if seats[0].head_start != "fresh" else self._then.recorded(seats)

    def weights(self, spec: RunFile, block: str, delivered: Sequence[Delivered], seats: int) -> list[float]:
        return self._then.weights(spec, block, delivered, seats)

    def outer(self, spec: RunFile) -> Outer | None:
        return self._then.outer(spec)

    def check(self, spec: RunFile, visited: Sequence[str], common: Set[str], agents: int | None = None) -> None:
        self._then.check(spec, visited, common, agents)
