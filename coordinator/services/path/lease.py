"""Leases: given with an emulator, given back, ended by time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent, Assignment, Round, Run
from fedcybgd.coordinator.domain.assignment import (
    AssignmentEvent,
    AssignmentState,
    TakenBack,
    check_lease,
)
from fedcybgd.coordinator.domain.compression import Plan
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.coordinator.services.emulators import choose, pace
from fedcybgd.coordinator.services.path import carried, give_up, openings, trained
from fedcybgd.coordinator.services.records import manifests
from fedcybgd.coordinator.services.states import assignments as states
from fedcybgd.shared.contract import assignments
from fedcybgd.shared.contract.assignments import ReturnRequest


@dataclass(frozen=True)
class Leased:
    """An agent has an assignment."""

    assignment: assignments.LeasedAssignment


def lease(session: Session, assignment: Assignment, run: Run, round: Round, agent: Agent, plan: Plan, now: datetime) -> Leased | None:
    """Lease it with the emulator of this plan; None, and nothing is changed, while that is being made."""
    manifest = choose.manifest_of(session, run, assignment, plan, agent.id, now)
    if manifest is None:
        return None
    spec = run.spec
    lease = timedelta(seconds=spec.lease_s)
    most = trained.limit_of(session, assignment)
    limits = pace.limits(session, run, assignment, agent, manifest, most)
    states.lease(assignment, agent.id, manifests.store(session, manifest), now, lease, limits.patience, limits.life)
    signals.holds(session, agent.id)
    settings = assignment.train
    return Leased(assignments.LeasedAssignment(
        assignment_id=assignment.id, attempt=assignment.attempt, lease_seconds=lease.total_seconds(), run_id=run.id, run_name=run.name,
        round=assignment.round, cycle=round.cycle, block=assignment.block,
        manifest=manifest, train=settings, delta_codec=spec.delta.codec, error_feedback=spec.delta.error_feedback,
        max_delta_bytes=most,
        carried=carried.of(session, assignment, agent.id) if spec.delta.error_feedback else [],
        stall_s=limits.patience.total_seconds(),
    ))  # fmt: skip


def held(session: Session, assignment_id: str, agent_id: str, attempt: int | None = None) -> Assignment:
    """The assignment if this agent holds its lease, of this attempt where one is given; raises `NotFound`, `LeaseLost` or `StaleAttempt`."""
    assignment = session.get(Assignment, assignment_id)
    if assignment is None:
        raise NotFound(f"there is no assignment {assignment_id!r}")
    check_lease(assignment.state, assignment.agent_id, assignment.attempt, agent_id, assignment.attempt if attempt is None else attempt)
    return assignment


def state_of(session: Session, assignment_id: str, agent_id: str) -> assignments.AssignmentAnswer:
    """What became of an assignment that this agent has or had."""
    assignment = session.get(Assignment, assignment_id)
    if assignment is None or agent_id not in (assignment.agent_id, assignment.meant_for):
        raise NotFound(f"you have no assignment {assignment_id!r}")
    return assignments.AssignmentAnswer(
        assignment_id=assignment.id, state=assignment.state, reason=assignment.reason, attempt=assignment.attempt
    )


def give_back(session: Session, assignment_id: str, agent_id: str, request: ReturnRequest, now: datetime) -> Assignment:
    assignment, run = locked(session, assignment_id)
    check_lease(assignment.state, assignment.agent_id, assignment.attempt, agent_id, request.attempt)
    give_up.failed_attempt(session, run, assignment, request.reason, request.message, now)
    return assignment


def lapsed(session: Session, now: datetime) -> Sequence[str]:
    """Ids of the runs with leases that ended."""
    ended = (Assignment.state == AssignmentState.LEASED) & (Assignment.lease_expires_at < now)
    return session.scalars(select(Assignment.run_id).where(ended).distinct()).all()


def lapse(session: Session, run_id: str, now: datetime) -> None:
    """Take back the leases of a run that ended: the work waits again, under the next attempt."""
    ended = (Assignment.state == AssignmentState.LEASED) & (Assignment.lease_expires_at < now)
    for assignment_id in session.scalars(select(Assignment.id).where(ended, Assignment.run_id == run_id).order_by(Assignment.id)).all():
        assignment, run = locked(session, assignment_id)
        if assignment.state == AssignmentState.LEASED and assignment.lease_expires_at is not None and assignment.lease_expires_at < now:
            message = "the agent did not renew its lease"
            give_up.failed_attempt(session, run, assignment, TakenBack.LAPSED, message, now, AssignmentEvent.LAPSE)


def hold_runs(session: Session, agent_id: str) -> None:
    """Lock the runs of which an agent holds work, in the order of their ids, and before its own row: as everybody does."""
    held = select(Assignment.run_id).where(Assignment.state == AssignmentState.LEASED, Assignment.agent_id == agent_id)
    session.scalars(select(Run.id).where(Run.id.in_(held)).order_by(Run.id).with_for_update()).all()


def release_all(session: Session, agent_id: str, now: datetime) -> None:
    """Give back what a revoked agent holds, and let others have what was meant for it."""
    for assignment_id in queries.leased_to(session, agent_id):
        assignment, run = locked(session, assignment_id)
        if assignment.state == AssignmentState.LEASED:
            give_up.failed_attempt(session, run, assignment, TakenBack.REVOKED, "", now)
    openings.leave_to_others(session, [agent_id])


def locked(session: Session, assignment_id: str) -> tuple[Assignment, Run]:
    """An assignment and its run, both locked; always the run first, so that two requests cannot wait for each other."""
    run_id = session.scalar(select(Assignment.run_id).where(Assignment.id == assignment_id))
    if run_id is None:
        raise NotFound(f"there is no assignment {assignment_id!r}")
    run = session.get_one(Run, run_id, with_for_update=True)
    return session.get_one(Assignment, assignment_id, with_for_update=True), run
