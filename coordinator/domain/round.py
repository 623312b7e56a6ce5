"""The states of a round."""

from enum import StrEnum

from coordinator.domain.machine import Machine


class RoundState(StrEnum):
    OPEN = "open"
    APPLYING = "applying"
    CLOSED = "closed"


class RoundEvent(StrEnum):
    ALL_ACCEPTED = "all_accepted"
    APPLIED = "applied"


ROUND = Machine(
    "round", RoundState, RoundEvent, RoundState.OPEN,
    {
        (RoundState.OPEN, RoundEvent.ALL_ACCEPTED): RoundState.APPLYING,
        (RoundState.APPLYING, RoundEvent.APPLIED): RoundState.CLOSED,
    },
)  # fmt: skip
