"""What the engines are at, and whether they move."""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Job, Model, Run
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.shared.contract.views import JobView


def running_jobs(session: Session, now: datetime) -> list[JobView]:
    """The oldest first; there are as many as lanes of living coordinators."""
    of = func.coalesce(Run.name, Model.name, Job.subject)
    rows = (
        select(Job.kind, of, Job.owner, Job.tries, Job.started_at, Job.cpu_s, Job.moved_at)
        .outerjoin(Run, Run.id == Job.subject)
        .outerjoin(Model, Model.id == Job.subject)
        .where(Job.state == JobState.RUNNING)
        .order_by(Job.created_at, Job.id)
    )
    return [
        JobView(
            kind=kind, of=name, owner=owner or "", tries=tries, seconds=_since(started, now), cpu_s=cpu_s, still_s=_since(moved, now)
        )
        for kind, name, owner, tries, started, cpu_s, moved in session.execute(rows)
    ]  # fmt: skip


def _since(moment: datetime | None, now: datetime) -> float:
    return max(0.0, (now - moment).total_seconds()) if moment is not None else 0.0
