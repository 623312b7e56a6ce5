"""The queue of heavy work: what waits, what runs, what came of it."""

from collections.abc import Callable, Collection
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Job
from fedcybgd.coordinator.domain.jobs.kinds import JobState, OnFailure
from fedcybgd.coordinator.domain.jobs.registry import JobType, kinds_that
from fedcybgd.coordinator.domain.jobs.states import JOB
from fedcybgd.coordinator.services.records import keys
from fedcybgd.coordinator.services.states import jobs as states

P = TypeVar("P", bound=BaseModel)
R = TypeVar("R", bound=BaseModel)


def enqueue(session: Session, job_type: JobType[P, R], subject: str, payload: P, now: datetime) -> Job:
    assert job_type.lane is not None, f"{job_type.kind} never waits"
    job = Job(
        id=keys.new_id("job"), kind=job_type.kind, lane=job_type.lane, subject=subject, payload=payload,
        state=JOB.start, tries=0, created_at=now,
    )  # fmt: skip
    session.add(job)
    signals.start_lane(session, job.lane)
    return job


def skip(session: Session, job_type: JobType[P, R], subject: str, now: datetime, which: Callable[[P], bool] = lambda _: True) -> list[P]:
    """Take jobs out of the queue for which a newer one comes, as `which` says of their payloads; returns these. One that runs goes on."""
    waiting = select(Job).where(Job.subject == subject, Job.kind == job_type.kind, Job.state == JobState.QUEUED).order_by(Job.created_at)
    skipped = []
    for job in session.scalars(waiting.with_for_update(skip_locked=True)).all():
        payload = job_type.payload_of(job.payload)
        if which(payload):
            states.skip(job, now)
            skipped.append(payload)
    return skipped


def unfinished(session: Session, job_type: JobType[P, R], subject: str | None = None) -> list[P]:
    """What is being made, or waits for it: of a run or model, or of all."""
    query = select(Job).where(Job.kind == job_type.kind, Job.state.in_([JobState.QUEUED, JobState.RUNNING]))
    found = session.scalars(query if subject is None else query.where(Job.subject == subject))
    return [job_type.payload_of(job.payload) for job in found]


def facts_of_unfinished(session: Session, job_type: JobType[P, R], subject: str, *names: str) -> list[tuple[str, ...]]:
    """A few fields of the payload of each unfinished job of a run, as text: a payload that names all shards of a model is not read for it."""
    fields = [Job.payload_json[name].as_string() for name in names]
    waiting = (Job.subject == subject) & (Job.kind == job_type.kind) & Job.state.in_([JobState.QUEUED, JobState.RUNNING])
    return [tuple(str(value) for value in row) for row in session.execute(select(*fields).where(waiting))]


def take(
    session: Session, lane: str, owner: str, now: datetime, last: Collection[str] = (), without: Collection[str] = ()
) -> Job | None:  # fmt: skip
    """The oldest waiting job of a lane, which `owner` does from now on; one of the kinds in `last` where there is no other, none of those `without`."""
    job = session.scalar(
        select(Job)
        .where(Job.state == JobState.QUEUED, Job.lane == lane, *([Job.id.not_in(without)] if without else []))
        .order_by(*([Job.kind.in_(last)] if last else []), Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if job is not None:
        states.take(job, owner, now)
    return job


def requeue_failed(session: Session, subject: str) -> None:
    """Jobs of a run whose failure paused it wait again (the operator has resumed it)."""
    failed = (Job.subject == subject) & (Job.state == JobState.FAILED) & Job.kind.in_(kinds_that(OnFailure.REPEATED))
    for job in session.scalars(select(Job).where(failed)):
        states.repeat(job)
        signals.start_lane(session, job.lane)
