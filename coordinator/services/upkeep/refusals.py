"""What an agent's report of its readiness changes in runs that are under way: it is passed over, or asked again."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent, Assignment, Run
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.services.agents import offers, readiness
from fedcybgd.coordinator.services.path import ask_again, give_up
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.agents import RunReadiness

PATIENCE = timedelta(seconds=3)
"""Work that waits for less is on its way to somebody"""


def report(session: Session, agent_id: str, said: Sequence[RunReadiness], now: datetime) -> None:
    """Write down what an agent says of the runs that are open to it; what it says of others is not kept."""
    agent = session.get_one(Agent, agent_id)
    # In one order, so that two reports cannot wait for each other.
    for word in sorted(said, key=lambda word: word.run_id):
        run = session.get(Run, word.run_id)
        if run is None or not offers.is_open_to(run, agent):
            continue
        row = readiness.row_of(session, run.id, agent_id, now)
        before, news = row.fits, (word.fits, word.reason, word.rows, word.exact)
        if (row.fits, row.reason, row.rows, row.exact) != news:
            (row.fits, row.reason, row.rows, row.exact), row.at = news, now
        if before is False and word.fits:
            signals.let_go(session, agent_id)  # `fedagent check` said so, perhaps, while the daemon's claim refuses the run
        if word.fits and (row.refused or run.waits_for_agents):
            ask_again.ask_again(session, run, agent, row, now)
        elif not word.fits and before is not False:
            _pass_over(session, run, agent, word.reason or "unfit", now)


def _pass_over(session: Session, run: Run, agent: Agent, reason: str, now: datetime) -> None:
    """What is meant for an agent that will not come is anybody's, at once."""
    if run.state != RunState.RUNNING:
        return
    session.flush()
    session.refresh(run, with_for_update=True)
    text = f"{agent.name} takes no work of run {run.name}: {reason}"
    record(session, now, "warning", "agent_unfit", text, run_id=run.id, agent_id=agent.id)
    for assignment in queries.pending_in(session, run.id, lock=True):
        if assignment.meant_for == agent.id:
            assignment.meant_for = None
            signals.offer(session, assignment.id)
        give_up.pause_if_hopeless(session, run, assignment, text, now)


def to_look_after(session: Session, now: datetime) -> list[str]:
    """Ids of the running runs for which nobody comes, or that say so and need not any more."""
    long = Assignment.waiting_since < now - PATIENCE
    waiting = select(Assignment.run_id).where(Assignment.state == AssignmentState.PENDING, long).distinct()
    runs = select(Run).where(Run.state == RunState.RUNNING, Run.id.in_(waiting) | Run.reason.is_not(None)).order_by(Run.id)
    return [run.id for run in session.scalars(runs).all() if _why_nobody_comes(session, run) != run.reason]


def look_after(session: Session, run_id: str, now: datetime) -> None:
    """Say aloud when a run waits and nobody who could do its work is there; nobody at all: pause it."""
    run = session.get_one(Run, run_id, with_for_update=True)
    text = _why_nobody_comes(session, run)
    if run.state != RunState.RUNNING or text == run.reason:
        return
    if text is not None and run.reason is None:
        record(session, now, "warning", "run_waits", f"run {run.name} {text}", run_id=run.id)
    run.reason = text
    for assignment in queries.pending_in(session, run.id, lock=True) if text is not None else ():
        give_up.pause_if_hopeless(session, run, assignment, f"block {assignment.called} is left", now)


def _why_nobody_comes(session: Session, run: Run) -> str | None:
    if all(readiness.somebody_there(session, run, run.spec, excluded) for excluded in _excluded(session, run)):
        return None
    members = readiness.members(session, run, run.spec)
    for assignment in queries.pending_in(session, run.id):
        left = [m for m in members if m.id not in assignment.excluded]
        if not any(m.takes_part for m in left):
            return f"waits for an agent that can train {assignment.called}: {readiness.listed(left) or 'nobody is left'}"
    return None


def _excluded(session: Session, run: Run) -> set[frozenset[str]]:
    """Who is not asked for the pending work of a run: mostly the same for all of it."""
    pending = select(Assignment.excluded).where(Assignment.run_id == run.id, Assignment.state == AssignmentState.PENDING)
    return {frozenset(excluded) for excluded in session.scalars(pending)}
