"""Step 2: decides which assignment an agent that asks for work gets."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.models import Agent, Assignment, Round, Run
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import (
    AssignmentState,
    TakenBack,
    may_take,
)
from fedcybgd.coordinator.domain.opening import Claimant, consents
from fedcybgd.coordinator.domain.round import RoundState
from fedcybgd.coordinator.domain.run import RUN, RunState
from fedcybgd.coordinator.services.agents import identity, offers
from fedcybgd.coordinator.services.emulators import exposure_budget
from fedcybgd.coordinator.services.path import ask_again, give_up, lease, openings
from fedcybgd.coordinator.services.path.lease import Leased, TurnedDown
from fedcybgd.shared.contract.agents import ClaimRequest


@dataclass(frozen=True)
class Nothing:
    """There is no work for an agent now."""

    awaited: frozenset[str]
    """ids of assignments that it might have once their emulators are made; then they are offered anew"""
    holds: bool
    """whether it holds a lease: it may wait for the emulator of what it holds"""


def ask(database: Database, agent_id: str, request: ClaimRequest, clock: Callable[[], datetime]) -> Leased | Nothing:
    """What an agent gets that asks for work. That it was turned down is written in a transaction of its own, which locks in the usual order."""
    while True:
        with database.transaction() as session:
            found = claim(session, agent_id, request, clock())
        if not isinstance(found, TurnedDown):
            return found
        with database.transaction() as session:
            turned_down(session, found, clock())


def claim(session: Session, agent_id: str, request: ClaimRequest, now: datetime) -> Leased | TurnedDown | Nothing:
    """Lease an assignment to an agent: its own unfinished one again (attempt + 1), or one meant for it, or that waits longest."""
    agent = session.get_one(Agent, agent_id)
    identity.admit(agent)  # it may have been revoked while it waited
    ask_again.declare(session, agent, request.limits, now)
    exposure_budget.serialize(session, agent_id)
    awaited, holds = set[str](), False
    for assignment_id in queries.leased_to(session, agent_id):
        if isinstance(held := _held(session, assignment_id, agent_id, request, now), Leased):
            return held
        awaited, holds = awaited | held.awaited, holds or held.holds
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
        if (outcome := lease.lease(session, assignment, run, agent_id, now)) is not None:
            return outcome
        awaited.add(assignment.id)
    return Nothing(frozenset(awaited), holds)


def _held(session: Session, assignment_id: str, agent_id: str, request: ClaimRequest, now: datetime) -> Leased | Nothing:
    """What an agent holds, leased again; while its emulator is being made it stays this agent's until the lease ends."""
    held, run = lease.locked(session, assignment_id)
    if held.state != AssignmentState.LEASED or held.agent_id != agent_id:
        return Nothing(frozenset(), holds=False)  # lapsed a moment ago
    if (why := _why_not(session, held, run, agent_id, request)) is not None:
        lease.take_back(session, held, run, why, "", now)
        return Nothing(frozenset(), holds=False)
    outcome = lease.lease(session, held, run, agent_id, now)
    return outcome if isinstance(outcome, Leased) else Nothing(frozenset({assignment_id} if outcome is None else ()), holds=True)


def _why_not(session: Session, held: Assignment, run: Run, agent_id: str, request: ClaimRequest) -> TakenBack | None:
    """Why an agent may not go on with what it holds."""
    if RUN.is_final(run.state):
        return TakenBack.RUN_ENDED
    if not consents(request, run.id, run.name):
        return TakenBack.NO_CONSENT
    return None if exposure_budget.may_take(session, run, run.spec, held, agent_id) else TakenBack.BEYOND_BUDGET


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


def turned_down(session: Session, found: TurnedDown, now: datetime) -> None:
    """Ask the agent for it no more in this round; or, where nobody can have an emulator that is right, pause the run."""
    assignment, run = lease.locked(session, found.assignment_id)
    if assignment.state != AssignmentState.PENDING:
        return
    if found.agent_id is None:
        give_up.pause(session, run, f"block {assignment.called}: {found.reason}", now)
    elif found.agent_id not in assignment.excluded:
        give_up.exclude(session, run, assignment, found.agent_id, found.reason, now)
