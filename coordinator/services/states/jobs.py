"""The transitions of a job."""

from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import update
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Job
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.domain.jobs.states import JOB, JobEvent


def take(row: Job) -> None:
    _go(row, JobEvent.TAKE)
    row.tries += 1


def skip(row: Job, now: datetime) -> None:
    _go(row, JobEvent.SKIP)
    row.ended_at = now


def finish(row: Job, result: BaseModel, now: datetime) -> None:
    _go(row, JobEvent.FINISH)
    row.result, row.ended_at = result, now


def fail(row: Job, code: str, message: str, now: datetime) -> None:
    _go(row, JobEvent.FAIL)
    row.error_code, row.error, row.ended_at = code, message, now


def interrupt(row: Job) -> None:
    """Its process died: it waits again."""
    _go(row, JobEvent.INTERRUPT)


def interrupt_all(session: Session) -> None:
    """The coordinator died: whatever was running waits again."""
    session.execute(update(Job).where(Job.state == JobState.RUNNING).values(state=JOB.after(JobState.RUNNING, JobEvent.INTERRUPT)))


def repeat(row: Job) -> None:
    """It failed, and what hindered it was mended: it waits again as if it were new."""
    _go(row, JobEvent.REPEAT)
    row.tries, row.error, row.error_code = 0, None, None


def _go(row: Job, event: JobEvent) -> None:
    row.state = JOB.after(row.state, event)
