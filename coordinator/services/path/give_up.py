"""When an attempt comes to nothing: others are asked, and a run that nobody can go on with is paused."""

from datetime import datetime

from pydantic import BaseModel
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent, Assignment, Round, Run
from fedcybgd.coordinator.domain.assignment import BLAMELESS, LEFT_TO_OTHERS, ON_PURPOSE, AssignmentEvent, is_held_against
from fedcybgd.coordinator.domain.jobs.payloads import EncodePayload
from fedcybgd.coordinator.domain.jobs.registry import ENCODE, Failed
from fedcybgd.coordinator.domain.outlook import at
from fedcybgd.coordinator.domain.quarantine import is_strike, passed_over
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.emulators import exposure_budget
from fedcybgd.coordinator.services.path import openings, outlook
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.coordinator.services.records.events import record, record_at_most, record_by
from fedcybgd.coordinator.services.states import agents as states
from fedcybgd.coordinator.services.states import assignments, runs
from fedcybgd.shared.contract.agents import MENDABLE_REASONS
from fedcybgd.shared.contract.assignments import COORDINATORS_OWN, LASTING_REASONS
from fedcybgd.shared.contract.sizes import counted


def failed_attempt(
    session: Session,
    run: Run,
    assignment: Assignment,
    reason: str,
    message: str,
    now: datetime,
    event: AssignmentEvent = AssignmentEvent.GIVE_BACK,
) -> None:
    """An attempt came to nothing: it waits again, and after too many failures the run is paused, with the reason."""
    agent_id = assignments.take_back(assignment, event, reason, now)
    why = f"{reason}: {message}" if message else reason
    if reason not in BLAMELESS:
        assignment.failures += 1
    if reason in LEFT_TO_OTHERS:
        assignment.meant_for = None
    if agent_id is not None and is_held_against(reason):
        hold_against(session, run, assignment, agent_id, reason, now)
    if reason in LASTING_REASONS | COORDINATORS_OWN and agent_id is not None:
        assignment.excluded = [*assignment.excluded, agent_id]
        if reason in MENDABLE_REASONS:
            readiness.refused(session, run.id, agent_id, assignment.id, reason, now)
        if assignment.meant_for == agent_id:
            assignment.meant_for = None
    if agent_id is not None and reason not in ON_PURPOSE:
        agent = session.get_one(Agent, agent_id)
        agent.last_error, agent.last_error_at = why, now
        # What counts against the run is counted by its events.
        told = record if reason in COORDINATORS_OWN else record_at_most
        told(session, now, "warning", reason, f"{agent.name} on {assignment.called}: {why}", agent_id=agent_id, run_id=run.id,
             round=assignment.round, block=assignment.called)  # fmt: skip
    signals.offer(session, assignment.id)
    if reason in COORDINATORS_OWN:
        _pause_if_agreed(session, run, assignment, reason, why, now)
    pause_if_hopeless(session, run, assignment, f"block {assignment.called}: {why}", now, agent_id)


def _pause_if_agreed(session: Session, run: Run, assignment: Assignment, reason: str, why: str, now: datetime) -> None:
    """What no agent can mend is believed when several of them say it of a visit, or nobody is left who could say otherwise."""
    opened = session.get_one(Round, (run.id, assignment.round)).opened_at
    said = queries.who_reported(session, run.id, reason, assignment.excluded, opened)
    if len(said) > 1 or not readiness.somebody_able(session, run, run.spec, assignment.excluded):
        pause(session, run, f"block {assignment.called}: {why}; so says {' and '.join(said)}, and no agent can mend it", now)


def hold_against(session: Session, run: Run, assignment: Assignment, agent_id: str, reason: str, now: datetime) -> None:
    """Count a failure of an agent at a visit. Who fails too often at one is passed over for it, who does so at one after another is not asked
    for anything for a while."""
    times = assignment.failed.get(agent_id, 0) + 1
    assignment.failed = {**assignment.failed, agent_id: times}
    if agent_id in passed_over(assignment.failed) and assignment.meant_for == agent_id:
        assignment.meant_for = None
    if is_strike(times, session.get_one(Agent, agent_id).quarantines > 0, gave_up=reason == "stopping"):
        strike(session, run, agent_id, reason, now)


def strike(session: Session, run: Run, agent_id: str, reason: str, now: datetime) -> None:
    """An agent is done with a visit, and nothing came of it; after too many of them it goes into quarantine."""
    agent = session.get_one(Agent, agent_id)
    if not states.strike(agent, now):
        return
    assert agent.quarantined_until is not None
    text = f"{agent.name} has failed at one visit after another, the last time with {reason}: it is asked for nothing until {at(agent.quarantined_until)}"
    record(session, now, "warning", "agent_quarantined", text, run_id=run.id, agent_id=agent_id)
    openings.leave_to_others(session, [agent_id])


def pause_if_hopeless(session: Session, run: Run, assignment: Assignment, why: str, now: datetime, agent_id: str | None = None) -> None:
    """Stop to try when nobody is left, or too many attempts have failed; the operator mends it and resumes. `agent_id`: by whose doing."""
    if run.state != RunState.RUNNING:
        return
    spec = run.spec
    if not readiness.somebody_able(session, run, spec, assignment.excluded):
        needed = outlook.of(session, run, assignment, now).text
        halt(session, run, f"no agent is left that could try: {why}; {needed}", now, True, agent_id)
    elif assignment.failures >= spec.schedule.max_attempts and not outlook.somebody_healthy(session, run, assignment):
        halt(session, run, f"{counted(assignment.failures, 'attempt')} failed: {why}", now, agent_id=agent_id)
    elif not exposure_budget.somebody_may(session, run, spec, assignment):
        limit = spec.exposure.max_exact_blocks
        text = f"no agent is left that may see block {assignment.called} within max_exact_blocks of {limit}: {why}"
        halt(session, run, text, now, agent_id=agent_id)


def exclude(session: Session, run: Run, assignment: Assignment, agent_id: str, why: str, now: datetime) -> None:
    """No emulator of a pending assignment fits an agent: others are asked."""
    name = queries.agent_name(session, agent_id)
    assignment.excluded = [*assignment.excluded, agent_id]
    readiness.refused(session, run.id, agent_id, assignment.id, None, now)
    if assignment.meant_for == agent_id:
        assignment.meant_for = None
    record_at_most(session, now, "warning", "does_not_fit", f"{name} on {assignment.called}: {why}", run_id=run.id, agent_id=agent_id,
                   round=assignment.round, block=assignment.called)  # fmt: skip
    signals.offer(session, assignment.id)
    pause_if_hopeless(session, run, assignment, f"block {assignment.called}: {why}", now, agent_id)


def pause(session: Session, run: Run, reason: str, now: datetime) -> None:
    """Stop a running run until the operator has mended something."""
    if run.state == RunState.RUNNING:
        halt(session, run, reason, now)


def halt(session: Session, run: Run, reason: str, now: datetime, waits_for_agents: bool = False, agent_id: str | None = None) -> None:
    runs.pause(run, reason[:2000], now, waits_for_agents)
    record_by(session, now, "error", "run_paused", f"run {run.name} paused: {_advised(reason[:2000], waits_for_agents)}", run.id, agent_id)
    signals.openings_changed(session)


def _advised(reason: str, waits_for_agents: bool = False) -> str:
    """A reason with what is to be done, where it does not say so itself."""
    if waits_for_agents:
        return f"{reason}; then it goes on by itself"
    return reason if "resume" in reason else f"{reason}; mend it, then resume"


def encoding_failed(session: Session, failed: Failed[EncodePayload]) -> None:
    """As `engine_failed`. The other blocks of the run are not made either, lest each of them fails by itself: they are asked for anew."""
    jobs.skip(session, ENCODE, failed.subject, failed.now, lambda waiting: waiting.mends is None)
    engine_failed(session, failed)


def engine_failed(session: Session, failed: Failed[BaseModel]) -> None:
    """A delta could not be judged or applied (a full disk, say): nothing is changed, and the run waits for the operator."""
    run = session.get_one(Run, failed.subject, with_for_update=True)
    message = f"{failed.kind} failed: {failed.message}"
    if run.state == RunState.RUNNING:
        runs.pause(run, message, failed.now)
        signals.openings_changed(session)
    record(session, failed.now, "error", failed.code, f"run {run.name} paused: {_advised(message)}", run_id=run.id)
