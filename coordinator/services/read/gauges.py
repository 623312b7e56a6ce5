"""Reads what metrics tell of the state of everything: a few counts by the database, however many agents and rounds there are."""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment, Evaluation, Job, Run
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.kinds import JobState, Lane
from fedcybgd.coordinator.domain.metrics import RUNS_TOLD
from fedcybgd.coordinator.domain.run import RUN, RunState
from fedcybgd.shared.contract.metrics import MetricEntry

UNDER_WAY = (AssignmentState.PENDING, AssignmentState.LEASED, AssignmentState.SUBMITTED)
LIVE = tuple(state for state in RunState if not RUN.is_final(state))
# Made once: to make a statement costs more than to ask it.
AGENTS = select(Agent.state, func.count()).group_by(Agent.state)
QUARANTINED = select(func.count()).select_from(Agent).where(Agent.quarantined_until.is_not(None))
RUNS = select(Run.state, func.count()).group_by(Run.state)
ASSIGNMENTS = select(Assignment.state, func.count()).where(Assignment.state.in_(UNDER_WAY)).group_by(Assignment.state)
OLDEST = (
    select(func.min(Assignment.waiting_since))
    .join(Run, Run.id == Assignment.run_id)
    .where(Assignment.state == AssignmentState.PENDING, Run.state == RunState.RUNNING)
)
JOBS = select(Job.lane, Job.state, func.count()).where(Job.state.in_(queries.OPEN_JOBS)).group_by(Job.lane, Job.state)
OLDEST_JOB = select(func.min(Job.created_at)).where(Job.state == JobState.QUEUED)
STILLEST = select(func.min(func.coalesce(Job.moved_at, Job.started_at))).where(Job.state == JobState.RUNNING)
TOLD = (
    select(Run.id, Run.name, Run.state, Run.rounds_done, Run.rounds_total)
    .where(Run.state.in_(LIVE)).order_by(Run.created_at.desc(), Run.id).limit(RUNS_TOLD)
)  # fmt: skip


def of(session: Session, now: datetime) -> Iterator[MetricEntry]:
    """As of now. A state that nobody is in is 0, so that a graph of it has no holes."""
    agents = {row[0]: row[1] for row in session.execute(AGENTS)}
    yield from (MetricEntry("fedcoord_agents", agents.get(state, 0), {"state": state}) for state in AgentState)
    yield MetricEntry("fedcoord_agents_quarantined", session.scalar(QUARANTINED) or 0)
    runs = {row[0]: row[1] for row in session.execute(RUNS)}
    yield from (MetricEntry("fedcoord_runs", runs.get(state, 0), {"state": state}) for state in RunState)
    assignments = {row[0]: row[1] for row in session.execute(ASSIGNMENTS)}
    yield from (MetricEntry("fedcoord_assignments", assignments.get(state, 0), {"state": state}) for state in UNDER_WAY)
    yield MetricEntry("fedcoord_oldest_pending_seconds", _since(session.scalar(OLDEST), now))
    jobs = {(lane, state): number for lane, state, number in session.execute(JOBS)}
    for lane in Lane:
        for state in queries.OPEN_JOBS:
            yield MetricEntry("fedcoord_jobs", jobs.get((lane, state), 0), {"lane": lane, "state": state})
    yield MetricEntry("fedcoord_oldest_job_seconds", _since(session.scalar(OLDEST_JOB), now))
    yield MetricEntry("fedcoord_engine_still_seconds", _since(session.scalar(STILLEST), now))
    yield from _of_runs(session)


def _of_runs(session: Session) -> Iterator[MetricEntry]:
    """Of those that have not ended: at most one has a name at a time."""
    found = session.execute(TOLD).all()
    for run in found:
        yield MetricEntry("fedcoord_run_rounds", run.rounds_total, {"run": run.name})
        yield MetricEntry("fedcoord_run_rounds_done", run.rounds_done, {"run": run.name})
        if run.state != RunState.DRAFT:
            yield MetricEntry("fedcoord_run_paused", run.state == RunState.PAUSED, {"run": run.name})
    names = {run.id: run.name for run in found}
    newest = select(Evaluation.run_id, func.max(Evaluation.after_rounds).label("last")).where(Evaluation.run_id.in_(names))
    last = newest.group_by(Evaluation.run_id).subquery()
    scores = select(Evaluation.run_id, Evaluation.metrics).join(
        last, (Evaluation.run_id == last.c.run_id) & (Evaluation.after_rounds == last.c.last)
    )
    for run_id, score in session.execute(scores):
        if score.loss is not None:
            yield MetricEntry("fedcoord_run_loss", score.loss, {"run": names[run_id]})
        if score.accuracy is not None:
            yield MetricEntry("fedcoord_run_accuracy", score.accuracy, {"run": names[run_id]})


def _since(moment: datetime | None, now: datetime) -> float:
    return max(0.0, (now - moment).total_seconds()) if moment is not None else 0.0
