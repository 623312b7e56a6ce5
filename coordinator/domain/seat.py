"""A seat: what a round asks of one agent."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from fedcybgd.shared.contract.words import HeadStart


class Seat(BaseModel):
    """(round, number): which blocks are trained, by whom, at which learning rates, from which seed."""

    model_config = ConfigDict(frozen=True)

    round: int
    number: int
    """from 0, in the order in which deltas are added up"""
    cycle: int
    blocks: tuple[str, ...] = Field(min_length=1)
    """without those that are trained along in every seat"""
    agent: str | None
    """The agent that it is meant for; None: whoever comes first."""
    learning_rate: float
    always_learning_rate: float
    seed: int
    head_start: HeadStart = "fresh"
    """what its head begins as; where it is not fresh, nothing is trained along"""

    def along(self, always: Sequence[str]) -> list[str]:
        """Which of the blocks that the run trains along this seat does."""
        return [name for name in always if name not in self.blocks] if self.head_start == "fresh" else []

    @property
    def block(self) -> str:
        return self.blocks[0]


def called(blocks: Sequence[str]) -> str:
    """A seat's blocks, for people."""
    return blocks[0] if len(blocks) == 1 else f"{blocks[0]} and {len(blocks) - 1} more"
