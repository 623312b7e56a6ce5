"""What an operator does with a run: start, pause, resume, cancel."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Assignment, Run
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.run import BY_OPERATOR
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import Conflict
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.emulators import exposure_budget
from fedcybgd.coordinator.services.measure import calibration, scores
from fedcybgd.coordinator.services.operate.exports import RunNotPrepared
from fedcybgd.coordinator.services.path import give_up, open_round
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import runs
from fedcybgd.shared.contract.sizes import counted


class NoAgents(Conflict):
    code = "no_agents"


class NobodyReady(Conflict):
    code = "nobody_ready"


class RowsHidden(Conflict):
    """Deltas are weighed by rows, and there are agents that do not say how many they have."""

    code = "rows_hidden"


def start(session: Session, name: str, now: datetime, anyway: bool = False) -> Run:
    """Begin with the agents that are there; others join when they come. `anyway`: with all of them, whoever is there."""
    run = queries.run_by_name(session, name, lock=True)
    runs.start(run, now)
    if not run.prepared:
        raise RunNotPrepared(f"run {run.name} is still being prepared; try again in a moment")
    spec = run.spec
    run.participants = _participants(session, run, spec, anyway)
    if spec.exposure.max_exact_blocks is not None:
        common = exposure_budget.common(spec, queries.blocks_of(session, run.id))
        method_of(spec).check(spec, run.trained_blocks, common, len(run.participants))
    record(
        session,
        now,
        "info",
        "run_started",
        f"run {run.name} started with {counted(len(run.participants), 'agent')}{_without_gate(run)}",
        run_id=run.id,
    )
    scores.evaluate_if_due(session, run, 0, now)
    open_round.open_next(session, run, now)
    return run


def _without_gate(run: Run) -> str:
    there = run.spec.admission.gate == "off" or calibration.has_calibration(run.spec)
    return "" if there else "; the gate is off, for it has no calibration rows: no held-out loss says whether a delta does harm"


def _participants(session: Session, run: Run, spec: RunFile, anyway: bool) -> list[str]:
    members = readiness.members(session, run, spec)
    if spec.agents != "all" and (unknown := sorted(set(spec.agents) - {member.name for member in members})):
        raise NoAgents(f"these agents of the run file are not enrolled: {', '.join(unknown)}", unknown=unknown)
    if not members:
        raise NoAgents("no agent is enrolled; make a token with `fedcoord agents token` and enrol one with `fedagent enroll`")
    if hidden := [member.name for member in members if member.reason == readiness.ROWS_HIDDEN]:
        raise RowsHidden(
            f"{spec.method}.weights is rows, and these agents do not say how many they have: {', '.join(hidden[:8])}. Write "
            "`weights: equal`, name the others in `agents`, or ask their owners to let them tell (`tell_rows`)",
            agents=hidden[:100],
        )
    if not anyway and not any(member.takes_part for member in members):
        raise NobodyReady(
            f"nobody is there to take part: {readiness.listed(members)}. Start again when an agent is "
            "(`fedagent run`, `fedagent check` on its machine), or start anyway",
            agents={member.name: str(member.standing) for member in members[:100]},
        )
    return [member.id for member in members if anyway or member.takes_part]


def pause(session: Session, name: str, now: datetime) -> Run:
    """No further round begins; what is being trained is finished and applied."""
    run = queries.run_by_name(session, name, lock=True)
    runs.pause(run, BY_OPERATOR, now)
    record(session, now, "info", "run_paused", f"run {run.name} paused by the operator", run_id=run.id)
    signals.openings_changed(session)
    return run


def resume(session: Session, name: str, now: datetime) -> Run:
    """Go on where it stopped; failures are forgotten, and agents that were passed over are asked again."""
    run = queries.run_by_name(session, name, lock=True)
    runs.resume(run, now)
    readiness.forget_refusals(session, run.id)
    pending = (Assignment.run_id == run.id) & (Assignment.state == AssignmentState.PENDING)
    for assignment in session.scalars(select(Assignment).where(pending).with_for_update()).all():
        assignment.failures, assignment.failed, assignment.excluded, assignment.waiting_since = 0, {}, [], now
        signals.offer(session, assignment.id)
        give_up.pause_if_hopeless(session, run, assignment, "enrol another agent, or cancel the run", now)
    jobs.requeue_failed(session, run.id)
    record(session, now, "info", "run_resumed", f"run {run.name} resumed", run_id=run.id)
    open_round.open_next(session, run, now)
    return run


def cancel(session: Session, name: str, now: datetime) -> Run:
    """End the run for good; agents that train for it learn it when they renew their lease. What was applied stays."""
    run = queries.run_by_name(session, name, lock=True)
    runs.cancel(run, now)
    record(session, now, "warning", "run_cancelled", f"run {run.name} cancelled by the operator", run_id=run.id)
    signals.openings_changed(session)
    return run
