"""What lanes hold: renewed while they live, given back when they stop, taken back when nobody renews it."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Job, Run
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.domain.jobs.lease import LEASE, Hold
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import jobs as states


def hold_of(job: Job) -> Hold:
    """Of a job that runs."""
    assert job.owner is not None
    return Hold(job.id, job.owner, job.tries)


def renew(session: Session, hold: Hold, now: datetime, cpu_s: float) -> bool:
    """Hold a job for another lease, and note how far its engine is; False: it is another's, or over."""
    row = session.scalar(
        select(Job)
        .where(Job.id == hold.job, Job.owner == hold.owner, Job.tries == hold.tries, Job.state == JobState.RUNNING)
        .with_for_update()
    )
    if row is None:
        return False
    row.lease_expires_at = now + LEASE
    if cpu_s != row.cpu_s:
        row.cpu_s, row.moved_at = cpu_s, now
    return True


def extend(session: Session, now: datetime) -> None:
    """Nobody could renew for a while: whoever is there still gets the time to."""
    session.execute(update(Job).where(Job.state == JobState.RUNNING).values(lease_expires_at=now + LEASE))


def lapse(session: Session, now: datetime) -> None:
    """Jobs whose owners renew no longer wait again."""
    ended = Job.lease_expires_at.is_(None) | (Job.lease_expires_at < now)
    for job in _running(session, ended):
        for_s = (now - job.started_at).total_seconds() if job.started_at else 0.0
        text = f"{job.kind} was begun {for_s:.0f} s ago by a coordinator that is gone, or out of reach of the database; it is done again"
        run_id = job.subject if session.get(Run, job.subject) is not None else None
        record(session, now, "warning", "job_lapsed", text, run_id=run_id)
        _interrupt(session, job)


def give_back(session: Session, owners: Iterable[str]) -> None:
    """What these owners held waits again: they stop, or are known to be gone."""
    for job in _running(session, Job.owner.in_(list(owners))):
        _interrupt(session, job)


def _running(session: Session, which: ColumnElement[bool]) -> Sequence[Job]:
    # One that is locked is being renewed, or its end is being written: it is nobody's to take back.
    held = select(Job).where(Job.state == JobState.RUNNING, which).order_by(Job.created_at, Job.id)
    return session.scalars(held.with_for_update(skip_locked=True)).all()


def _interrupt(session: Session, job: Job) -> None:
    states.interrupt(job)
    signals.start_lane(session, job.lane)
