"""The transitions of a job."""

from datetime import datetime

from pydantic import BaseModel

from fedcybgd.coordinator.db import counts
from fedcybgd.coordinator.db.models import Job
from fedcybgd.coordinator.domain.jobs.lease import LEASE
from fedcybgd.coordinator.domain.jobs.states import JOB, JobEvent


def take(row: Job, owner: str, now: datetime) -> None:
    """A lane of `owner` does it from now on."""
    _go(row, JobEvent.TAKE)
    row.tries += 1
    if row.tries == 1:
        counts.count_of(row, "fedcoord_job_queue_seconds", (now - row.created_at).total_seconds(), row.lane)
    row.owner, row.lease_expires_at = owner, now + LEASE
    row.started_at = row.moved_at = now
    row.cpu_s = 0.0


def skip(row: Job, now: datetime) -> None:
    _go(row, JobEvent.SKIP)
    row.ended_at = now


def finish(row: Job, result: BaseModel, now: datetime) -> None:
    _go(row, JobEvent.FINISH)
    row.result, row.ended_at = result, now
    row.error = row.error_code = None
    _count(row, now)


def fail(row: Job, code: str, message: str, now: datetime) -> None:
    _go(row, JobEvent.FAIL)
    row.error_code, row.error, row.ended_at = code, message, now
    _count(row, now)


def interrupt(row: Job, engine_died: bool = False) -> None:
    """Its process died, or its owner stopped or is gone: it waits again, for anybody. Only the former is held against the job."""
    _go(row, JobEvent.INTERRUPT)
    row.deaths += engine_died
    row.owner = row.lease_expires_at = row.started_at = row.moved_at = None


def stand_aside(row: Job, code: str, message: str) -> None:
    """There is no room for what it makes: it waits again, and says for what."""
    interrupt(row)
    row.error_code, row.error = code, message


def repeat(row: Job) -> None:
    """It failed, and what hindered it was mended: it waits again as if it were new."""
    _go(row, JobEvent.REPEAT)
    row.tries, row.deaths, row.error, row.error_code = 0, 0, None, None


def _count(row: Job, now: datetime) -> None:
    counts.count_of(row, "fedcoord_jobs_total", 1, row.kind, row.state)
    if row.started_at is not None:
        counts.count_of(row, "fedcoord_job_seconds", (now - row.started_at).total_seconds(), row.kind)


def _go(row: Job, event: JobEvent) -> None:
    row.state = JOB.after(row.state, event)
