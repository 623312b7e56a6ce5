"""The queue of heavy work: what waits, what runs, what came of it."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Job
from fedcybgd.coordinator.domain.job import LANES, JobKind, JobState
from fedcybgd.coordinator.domain.job_states import JOB
from fedcybgd.coordinator.services import signals
from fedcybgd.coordinator.services.records import keys
from fedcybgd.coordinator.services.states import jobs as states


def enqueue(session: Session, kind: JobKind, subject: str, payload: dict[str, object]) -> Job:
    job = Job(
        id=keys.new_id("job"), kind=kind, lane=LANES[kind], subject=subject, payload=payload,
        state=JOB.start, tries=0, created_at=utcnow(),
    )  # fmt: skip
    session.add(job)
    signals.start_lane(session, job.lane)
    return job


def skip(session: Session, kind: JobKind, subject: str, which: Callable[[dict[str, Any]], bool] = lambda _: True) -> list[Job]:
    """Take jobs out of the queue for which a newer one comes, as `which` says of their payloads; returns them. One that runs goes on."""
    waiting = select(Job).where(Job.subject == subject, Job.kind == kind, Job.state == JobState.QUEUED).order_by(Job.created_at)
    skipped = [job for job in session.scalars(waiting.with_for_update(skip_locked=True)) if which(job.payload)]
    for job in skipped:
        states.skip(job, utcnow())
    return skipped


def take(session: Session, lane: str) -> Job | None:
    """The oldest waiting job of a lane, now running."""
    job = session.scalar(
        select(Job)
        .where(Job.state == JobState.QUEUED, Job.lane == lane)
        .order_by(Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if job is not None:
        states.take(job)
    return job


def requeue_interrupted(session: Session) -> None:
    """Jobs that ran when this coordinator died wait again: each may be repeated, its results are named by their content."""
    states.interrupt_all(session)


def requeue_failed(session: Session, subject: str, kinds: tuple[JobKind, ...]) -> None:
    """Failed jobs of a run wait again (the operator has resumed it)."""
    for job in session.scalars(select(Job).where(Job.subject == subject, Job.state == JobState.FAILED, Job.kind.in_(kinds))):
        states.repeat(job)
        signals.start_lane(session, job.lane)
