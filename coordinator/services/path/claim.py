"""Step 2: decides which assignment an agent that asks for work gets."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.models import Agent, Assignment, Round, Run
from fedcybgd.coordinator.domain.assignment import (
    NOT_COUNTED,
    AssignmentState,
    TakenBack,
    may_take,
)
from fedcybgd.coordinator.domain.compression import DoesNotFit, FidelityTooLow, Plan
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.opening import Claimant, consents
from fedcybgd.coordinator.domain.quarantine import passed_over
from fedcybgd.coordinator.domain.round import RoundState
from fedcybgd.coordinator.domain.run import RUN, RunState
from fedcybgd.coordinator.services.agents import identity, offers, readiness
from fedcybgd.coordinator.services.emulators import choose, exposure_budget
from fedcybgd.coordinator.services.path import ask_again, give_up, lease, openings, outlook
from fedcybgd.coordinator.services.path.lease import Leased
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.versions import SPOKEN, Version

PENDING = select(Assignment).where(Assignment.id == bindparam("assignment"), Assignment.state == AssignmentState.PENDING)
AS_IT_IS = select(Round, Run).join(Run, Run.id == Round.run_id).where(Round.run_id == bindparam("run"), Round.number == bindparam("round"))


@dataclass(frozen=True)
class TurnedDown:
    """No emulator is right: for one agent, or (None) for anybody."""

    assignment_id: str
    agent_id: str | None
    reason: str


@dataclass(frozen=True)
class Nothing:
    """There is no work for an agent now."""

    awaited: frozenset[str]
    """ids of assignments that it might have once their emulators are made; then they are offered anew"""
    holds: bool
    """whether it holds a lease: it may wait for the emulator of what it holds"""


def ask(
    database: Database,
    agent_id: str,
    request: ClaimRequest,
    clock: Callable[[], datetime],
    before: Callable[[Session], None],
    speaks: Version = SPOKEN,
) -> Leased | Nothing:
    """What an agent gets that asks for work. That it was turned down is written in a transaction of its own, which locks in the usual order.

    `before` is what a transaction does first.
    """
    while True:
        with database.transaction() as session:
            before(session)
            found = claim(session, agent_id, request, clock(), speaks)
        if not isinstance(found, TurnedDown):
            return found
        with database.transaction() as session:
            turned_down(session, found, clock())


def claim(session: Session, agent_id: str, request: ClaimRequest, now: datetime, speaks: Version = SPOKEN) -> Leased | TurnedDown | Nothing:
    """Lease an assignment to an agent: its own unfinished one again (attempt + 1), or one meant for it, or that waits longest."""
    agent = session.get_one(Agent, agent_id)
    identity.admit(agent)  # it may have been revoked while it waited
    ask_again.declare(session, agent, request.limits, now)
    exposure_budget.serialize(session, agent_id)
    awaited, holds = set[str](), False
    for assignment_id in queries.leased_to(session, agent_id):
        if isinstance(held := _held(session, assignment_id, agent, request, now), Leased):
            return held
        awaited, holds = awaited | held.awaited, holds or held.holds
    if agent.quarantined_until is not None:
        return Nothing(frozenset(awaited), holds)
    claimant = Claimant(agent_id, agent.name, request, speaks)
    found = [opening for opening in openings.waiting(session, now) if opening.is_for(claimant)]
    # A stand-in does its own part first.
    for opening in sorted(found, key=lambda opening: opening.meant_for != agent_id):
        assignment, run = session.get_one(Assignment, opening.assignment_id), session.get_one(Run, opening.run_id)
        chosen = _plan(session, run, assignment, agent) if _may_take(session, assignment, run, agent, now) else None
        if isinstance(chosen, TurnedDown):
            return chosen
        if chosen is None or (round := _hold(session, assignment, run)) is None:
            continue
        if (leased := lease.lease(session, assignment, run, round, agent, chosen, now)) is not None:
            return leased
        awaited.add(assignment.id)
    return Nothing(frozenset(awaited), holds)


def _held(session: Session, assignment_id: str, agent: Agent, request: ClaimRequest, now: datetime) -> Leased | Nothing:
    """What an agent holds, leased again; while its emulator is being made it stays this agent's until the lease ends."""
    held, run = lease.locked(session, assignment_id)
    if held.state != AssignmentState.LEASED or held.agent_id != agent.id:
        return Nothing(frozenset(), holds=False)  # lapsed a moment ago
    why = _why_not(run, request)
    chosen = _plan(session, run, held, agent) if why is None else None
    if chosen is None:
        give_up.failed_attempt(session, run, held, why or TakenBack.BEYOND_BUDGET, "", now)
        return Nothing(frozenset(), holds=False)
    if isinstance(chosen, TurnedDown):
        return Nothing(frozenset(), holds=True)
    round = session.get_one(Round, (run.id, held.round))
    return lease.lease(session, held, run, round, agent, chosen, now) or Nothing(frozenset({assignment_id}), holds=True)


def _plan(session: Session, run: Run, assignment: Assignment, agent: Agent) -> Plan | TurnedDown | None:
    """The codecs in which the agent would get the model; None: they are beyond its exposure budget."""
    refusal, plan = TurnedDown(assignment.id, None, ""), None
    try:
        plan = choose.plan_of(session, run, assignment, agent)
    except FidelityTooLow as error:
        # With `auto` a plan goes by what this agent declares: another may have a better one.
        refusal = TurnedDown(assignment.id, agent.id if run.spec.compression.policy == "auto" else None, error.message)
    if not exposure_budget.lets(session, run, assignment, agent, plan):
        return None
    if isinstance(plan, DoesNotFit):
        return TurnedDown(assignment.id, agent.id, plan.reason)
    return refusal if plan is None else plan


def _why_not(run: Run, request: ClaimRequest) -> TakenBack | None:
    """Why an agent may not go on with what it holds."""
    if RUN.is_final(run.state):
        return TakenBack.RUN_ENDED
    return None if consents(request, run.id, run.name) else TakenBack.NO_CONSENT


def _hold(session: Session, assignment: Assignment, run: Run) -> Round | None:
    """Lock a pending assignment, so that nobody else leases it and its round is not applied meanwhile; returns the round.

    None if that has happened, or what the decision was made by has changed: whoever changed it offers it anew.
    """
    decided_by, key = _decided_by(assignment), (run.id, assignment.id, assignment.round)
    session.flush()
    session.expire_all()
    if session.scalar(PENDING.with_for_update(skip_locked=True), {"assignment": key[1]}) is None:
        return None
    round, _ = session.execute(AS_IT_IS, {"run": key[0], "round": key[2]}).one()
    return round if run.state == RunState.RUNNING and round.state == RoundState.OPEN and _decided_by(assignment) == decided_by else None


def _decided_by(assignment: Assignment) -> tuple[object, ...]:
    return assignment.attempt, assignment.meant_for, assignment.excluded, assignment.failed, assignment.waiting_since


def _may_take(session: Session, assignment: Assignment, run: Run, agent: Agent, now: datetime) -> bool:
    # Whoever came after the start may stand in for another.
    if agent.id in run.without:
        return False
    if agent.id not in run.participants and not offers.is_open_to(run, agent):
        return False
    # Who has failed at it too often leaves it to others, as long as there are any.
    if agent.id in passed_over(assignment.failed) and outlook.somebody_healthy(session, run, assignment):
        return False
    shared = assignment.meant_for is None and method_of(run.spec).is_shared(run.spec)
    leave = shared and _others_have_no_part(session, assignment, run, agent.id)
    wait = timedelta(seconds=run.spec.schedule.reassign_after_s)
    return may_take(agent.id, assignment.meant_for, assignment.excluded, assignment.waiting_since, wait, now, leave)


def _others_have_no_part(session: Session, assignment: Assignment, run: Run, agent_id: str) -> bool:
    """Whether an agent has a part in this round already while active participants, who could take this one, have none."""
    members = queries.assignments_of(session, run.id, assignment.round)
    busy = {a.agent_id for a in members if a.state not in NOT_COUNTED}
    free = set(run.participants) - busy - set(assignment.excluded) - passed_over(assignment.failed)
    return agent_id in busy and bool(readiness.there(session, run.id, free))


def turned_down(session: Session, found: TurnedDown, now: datetime) -> None:
    """Ask the agent for it no more in this round; or, where nobody can have an emulator that is right, pause the run."""
    assignment, run = lease.locked(session, found.assignment_id)
    if assignment.state != AssignmentState.PENDING:
        return
    if found.agent_id is None:
        give_up.pause(session, run, f"block {assignment.called}: {found.reason}", now)
    elif found.agent_id not in assignment.excluded:
        give_up.exclude(session, run, assignment, found.agent_id, found.reason, now)
