"""Leases that ended, and rounds whose deadline has passed: a run at a time, so that nobody waits for one run with another in hand."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Run
from fedcybgd.coordinator.services.path import apply_round, lease


def passed(session: Session, now: datetime) -> list[str]:
    """Ids of the runs that have to be looked after."""
    return sorted({*lease.lapsed(session, now), *(run_id for run_id, _ in apply_round.overdue(session, now))})


def look_after(session: Session, run_id: str, now: datetime) -> None:
    """Take its leases back, and apply what came in time. A run that somebody is at is left to the next look."""
    free = select(Run.id).where(Run.id == run_id).with_for_update(skip_locked=True, key_share=True)
    if session.scalar(free) is not None:
        lease.lapse(session, run_id, now)
        apply_round.apply_overdue(session, run_id, now)
