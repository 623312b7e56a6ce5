"""Which assignments wait for an agent: what the waiting room knows, and what a claim looks through first."""

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Assignment, Round, Run
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.opening import Opening, needed
from fedcybgd.coordinator.domain.round import RoundState
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.services.records import run_files

WAITING = (
    select(Assignment.id, Assignment.run_id, Run.name, Assignment.meant_for, Assignment.excluded, Assignment.waiting_since)
    .join(Run, Run.id == Assignment.run_id)
    .join(Round, (Round.run_id == Assignment.run_id) & (Round.number == Assignment.round))
    .where(Assignment.state == AssignmentState.PENDING, Run.state == RunState.RUNNING, Round.state == RoundState.OPEN)
    .order_by(Assignment.waiting_since, Assignment.id)
)
"""Made once: that costs more than asking."""


def waiting(session: Session, now: datetime) -> list[Opening]:
    """The pending assignments of open rounds of running runs, those that wait longest first."""
    found = []
    for assignment_id, run_id, run_name, meant_for, excluded, since in session.execute(WAITING).all():
        run = run_files.parsed(session, run_id)
        found.append(
            Opening(
                assignment_id=assignment_id, run_id=run_id, run_name=run_name, meant_for=meant_for, excluded=frozenset(excluded),
                overdue=now - since >= timedelta(seconds=run.file.schedule.reassign_after_s), open_to=run.open_to,
                shared=method_of(run.file).is_shared(run.file), needs=needed(run.file),
            )
        )  # fmt: skip
    return found


def leave_to_others(session: Session, agents: Collection[str]) -> None:
    """What is meant for agents that do not come is anybody's."""
    session.flush()
    gone = set(agents)
    waiting = select(Assignment.id, Assignment.meant_for).where(
        Assignment.state == AssignmentState.PENDING, Assignment.meant_for.is_not(None)
    )
    if ids := [row.id for row in session.execute(waiting) if row.meant_for in gone]:
        left = update(Assignment).where(Assignment.id.in_(ids), Assignment.state == AssignmentState.PENDING)
        session.execute(left.values(meant_for=None))
        signals.offer(session, *ids)
