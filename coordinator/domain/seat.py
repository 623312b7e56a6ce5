"""A seat: what a round asks of one agent."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field


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

    @property
    def block(self) -> str:
        return self.blocks[0]


def called(blocks: Sequence[str]) -> str:
    """A seat's blocks, for people."""
    return blocks[0] if len(blocks) == 1 else f"{blocks[0]} and {len(blocks) - 1} more"
