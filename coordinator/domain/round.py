"""The states of a round, and the deadline of its last deltas."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum

from fedcybgd.coordinator.domain.machine import Machine


class RoundState(StrEnum):
    OPEN = "open"
    APPLYING = "applying"
    CLOSED = "closed"


class RoundEvent(StrEnum):
    ALL_ACCEPTED = "all_accepted"
    DEADLINE = "deadline"
    APPLIED = "applied"
    PARTLY_APPLIED = "partly_applied"
    LOSE = "lose"
    REFUSE = "refuse"
    UNDO = "undo"


ROUND = Machine(
    "round", RoundState, RoundEvent, RoundState.OPEN,
    {
        (RoundState.OPEN, RoundEvent.ALL_ACCEPTED): RoundState.APPLYING,
        (RoundState.OPEN, RoundEvent.DEADLINE): RoundState.APPLYING,
        (RoundState.APPLYING, RoundEvent.APPLIED): RoundState.CLOSED,
        # One of its deltas is lost, and is trained again.
        (RoundState.APPLYING, RoundEvent.LOSE): RoundState.OPEN,
        # What they make of the model did not pass the gate.
        (RoundState.APPLYING, RoundEvent.REFUSE): RoundState.OPEN,
        # Some of its deltas are taken out again; the others stay, or are applied anew.
        (RoundState.OPEN, RoundEvent.UNDO): RoundState.OPEN,
        (RoundState.APPLYING, RoundEvent.UNDO): RoundState.OPEN,
        (RoundState.CLOSED, RoundEvent.UNDO): RoundState.OPEN,
        # Some members came too late to be applied with the others: they are trained from the new versions.
        (RoundState.APPLYING, RoundEvent.PARTLY_APPLIED): RoundState.OPEN,
    },
)  # fmt: skip


def deadline_of(accepted_at: Iterable[datetime | None], wave_deadline_s: float | None) -> datetime | None:
    """When the others are waited for no longer: so long after the first of these deltas was accepted. None: for ever."""
    first = min((at for at in accepted_at if at is not None), default=None)
    return None if first is None or wave_deadline_s is None else first + timedelta(seconds=wave_deadline_s)
