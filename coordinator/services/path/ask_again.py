"""An agent that was passed over is asked again: its data fit by now, or it allows training to take more. The other side of give_up."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Agent, Assignment, Readiness, Run
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.services.path import open_round, outlook
from fedcybgd.coordinator.services.records.events import record_at_most, record_by
from fedcybgd.coordinator.services.states import runs
from fedcybgd.shared.contract.agents import DeclaredLimits


def declare(session: Session, agent: Agent, limits: DeclaredLimits, now: datetime) -> None:
    """Note what an agent allows training to take, as it says with each claim. What did not fit it may fit now."""
    if agent.limits == limits:
        return
    for row in session.scalars(select(Readiness).where(Readiness.agent_id == agent.id).order_by(Readiness.run_id)).all():
        if row.refused and row.fits is not False:
            ask_again(session, session.get_one(Run, row.run_id), agent, row, now)
    agent.limits = limits  # last: rows of runs are locked before those of agents
    signals.forget(session, agent.id)


def ask_again(session: Session, run: Run, agent: Agent, row: Readiness, now: datetime) -> None:
    """Let it have what it was passed over for; a run that was paused because nobody was left goes on."""
    session.flush()
    session.refresh(run, with_for_update={"key_share": True})  # rows of others that refer to it hold nobody up
    for assignment_id in row.refused:
        assignment = session.get(Assignment, assignment_id, with_for_update=True, populate_existing=True)
        if assignment is not None and assignment.state == AssignmentState.PENDING and agent.id in assignment.excluded:
            assignment.excluded = [other for other in assignment.excluded if other != agent.id]
            assignment.failures = max(0, assignment.failures - 1)
    row.refused = []
    if run.state == RunState.RUNNING or run.waits_for_agents:
        record_at_most(session, now, "info", "agent_ready", f"{agent.name} takes work of run {run.name} again", agent.id, run.id)
        signals.invite(session, [agent.id])
    if run.state == RunState.PAUSED and run.waits_for_agents and not outlook.is_stuck(session, run):
        go_on(session, run, f"{agent.name} is ready", now, agent.id)


def go_on(session: Session, run: Run, because: str, now: datetime, agent_id: str | None = None) -> None:
    """A run that was paused because nobody could go on is under way again."""
    runs.resume(run, now)
    record_by(session, now, "info", "run_resumed", f"run {run.name} goes on: {because}", run.id, agent_id)
    open_round.open_next(session, run, now)
    signals.openings_changed(session)
