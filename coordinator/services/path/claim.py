"""Step 2: decides which assignment an agent that asks for work gets."""

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment, Round, Run
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import (
    AssignmentState,
    may_take,
)
from fedcybgd.coordinator.domain.opening import Claimant, consents
from fedcybgd.coordinator.domain.round import RoundState
from fedcybgd.coordinator.domain.run import RUN, RunState
from fedcybgd.coordinator.services.agents import identity, offers
from fedcybgd.coordinator.services.emulators import exposure_budget
from fedcybgd.coordinator.services.path import give_up, lease, openings
from fedcybgd.shared.contract import assignments
from fedcybgd.shared.contract.agents import ClaimRequest


def claim(session: Session, agent_id: str, request: ClaimRequest, now: datetime) -> assignments.Assignment | None:
    """Lease an assignment to an agent: its own unfinished one again (attempt + 1), or one meant for it, or that waits longest."""
    agent = session.get_one(Agent, agent_id)
    identity.admit(agent)  # it may have been revoked while it waited
    exposure_budget.serialize(session, agent_id)
    for assignment_id in queries.leased_to(session, agent_id):
        held, run = lease.locked(session, assignment_id)
        if held.state != AssignmentState.LEASED or held.agent_id != agent_id:
            continue  # lapsed a moment ago
        spec = run.spec
        if (
            not RUN.is_final(run.state)
            and consents(request, run.id, run.name)
            and exposure_budget.may_take(session, run, spec, held, agent_id)
        ):
            if (leased := lease.lease(session, held, run, agent_id, now)) is not None:
                return leased
            continue  # its emulator is being made; it stays this agent's until the lease ends
        lease.take_back(session, held, run, "stopping", "", now)
    claimant = Claimant(agent_id, agent.name, request)
    found = [opening for opening in openings.waiting(session, now) if opening.is_for(claimant)]
    # A stand-in does its own part first.
    for opening in sorted(found, key=lambda opening: opening.meant_for != agent_id):
        assignment, run = session.get_one(Assignment, opening.assignment_id), session.get_one(Run, opening.run_id)
        if not _may_take(session, assignment, run, agent_id, now):
            continue
        # What was looked at without a lock may have changed meanwhile, so it is looked at again.
        if not _hold(session, assignment, run) or not _may_take(session, assignment, run, agent_id, now):
            continue
        if (leased := lease.lease(session, assignment, run, agent_id, now)) is not None:
            return leased
    return None


def holds(session: Session, agent_id: str) -> bool:
    """Whether an agent holds a lease: it may wait for the emulator of what it holds."""
    return bool(queries.leased_to(session, agent_id))


def _hold(session: Session, assignment: Assignment, run: Run) -> bool:
    """Lock a pending assignment, so that nobody else leases it and its round is not applied meanwhile. False if that has happened."""
    session.flush()
    free = select(Assignment.id).where(Assignment.id == assignment.id, Assignment.state == AssignmentState.PENDING)
    if session.scalar(free.with_for_update(skip_locked=True)) is None:
        return False
    session.expire_all()
    round = session.get_one(Round, (assignment.run_id, assignment.round))
    return run.state == RunState.RUNNING and round.state == RoundState.OPEN


def _may_take(session: Session, assignment: Assignment, run: Run, agent_id: str, now: datetime) -> bool:
    spec = run.spec
    # Whoever came after the start may stand in for another.
    if agent_id not in run.participants and not offers.is_open_to(run, session.get_one(Agent, agent_id)):
        return False
    wait = timedelta(seconds=spec.schedule.reassign_after_s)
    leave = assignment.meant_for is None and spec.schedule.wave > 1 and _others_have_no_part(session, assignment, run, agent_id)
    if not may_take(agent_id, assignment.meant_for, assignment.excluded, assignment.waiting_since, wait, now, leave):
        return False
    return exposure_budget.may_take(session, run, spec, assignment, agent_id)


def _others_have_no_part(session: Session, assignment: Assignment, run: Run, agent_id: str) -> bool:
    """Whether an agent has a part in this wave already while active participants, who could take this one, have none."""
    members = queries.assignments_of(session, run.id, assignment.round)
    busy = {a.agent_id for a in members if a.state != AssignmentState.REJECTED}
    free = set(run.participants) - busy - set(assignment.excluded)
    if agent_id not in busy or not free:
        return False
    return session.scalar(select(Agent.id).where(Agent.id.in_(free), Agent.state == AgentState.ACTIVE).limit(1)) is not None


def turned_down(session: Session, assignment_id: str, agent_id: str | None, reason: str) -> None:
    """A claim found that no emulator is right: for one agent, who is not asked again in this round, or (None) for anybody."""
    assignment, run = lease.locked(session, assignment_id)
    if assignment.state != AssignmentState.PENDING:
        return
    if agent_id is None:
        give_up.pause(session, run, f"block {assignment.called}: {reason}")
    elif agent_id not in assignment.excluded:
        give_up.exclude(session, run, assignment, agent_id, reason)
