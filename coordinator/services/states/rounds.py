"""The transitions of a round."""

from datetime import datetime

from fedcybgd.coordinator.db import counts
from fedcybgd.coordinator.db.models import Round
from fedcybgd.coordinator.domain.round import ROUND, RoundEvent


def apply(row: Round, complete: bool) -> None:
    """Its accepted deltas are being applied; `complete`: none is missing."""
    _go(row, RoundEvent.ALL_ACCEPTED if complete else RoundEvent.DEADLINE)


def reopen(row: Round, event: RoundEvent) -> None:
    """Something of it is trained again."""
    _go(row, event)


def undo(row: Round) -> None:
    """Some of its seats are trained again."""
    _go(row, RoundEvent.UNDO)
    row.closed_at = row.loss_after = None


def finish(row: Round, now: datetime) -> None:
    _go(row, RoundEvent.APPLIED)
    row.closed_at = now
    counts.count_of(row, "fedcoord_rounds_closed_total")
    counts.count_of(row, "fedcoord_round_seconds", (now - row.opened_at).total_seconds())


def _go(row: Round, event: RoundEvent) -> None:
    row.state = ROUND.after(row.state, event)
