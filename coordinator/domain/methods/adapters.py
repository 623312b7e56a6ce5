"""Adapters (LoRA): in a round many agents train the same factors beside frozen matrices, and their mean is taken; or one does, after another."""

from collections.abc import Collection, Sequence

from fedcybgd.coordinator.domain.adapters_section import AdaptersSection
from fedcybgd.coordinator.domain.methods.whole import Whole
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.seat import Seat


class AdaptersMethod(Whole):
    """Their factors are a block, the only one that is visited. The rest is the averaging of whole models."""

    def is_shared(self, spec: RunFile) -> bool:
        return not is_handed(spec)

    def weighs_rows(self, spec: RunFile) -> bool:
        return super().weighs_rows(spec) and not is_handed(spec)

    def seats(
        self,
        spec: RunFile,
        visited: Sequence[str],
        agents: Sequence[str],
        round: int,
        common: Collection[str],
        ranking: Sequence[str] = (),
    ) -> list[Seat]:
        """As of whole models; handed from agent to agent, the turn is the next one's in each round."""
        turn = [agents[round % len(agents)]] if is_handed(spec) else agents
        return super().seats(spec, visited, turn, round, common, ranking)


def is_handed(spec: RunFile) -> bool:
    return section_of(spec).combine == "handed"


def section_of(spec: RunFile) -> AdaptersSection:
    assert spec.adapters is not None, "a run file of this method has the section"
    return spec.adapters
