"""Runs: create, prepare, start, pause, resume, cancel, export."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db import queries
from coordinator.db.base import utcnow
from coordinator.db.models import Assignment, Block, HeldOut, Job, Run
from coordinator.domain import exposure
from coordinator.domain.assignment import AssignmentState
from coordinator.domain.job import (
    REPEATED,
    ExportPayload,
    ExportResult,
    HeldOutRef,
    JobKind,
    JobState,
    PreparePayload,
    PrepareResult,
)
from coordinator.domain.measurements import InfluenceResult
from coordinator.domain.run import RUN, RunEvent, RunState
from coordinator.domain.run_file import RunFile
from coordinator.domain.schedule import rounds_in
from coordinator.errors import Conflict, Invalid, NotFound
from coordinator.services import budget, calibration, emulators, jobs, keys, models, readiness, rounds, signals
from coordinator.services.events import record


class RunNotPrepared(Conflict):
    code = "run_not_prepared"


class NoAgents(Conflict):
    code = "no_agents"


class NobodyReady(Conflict):
    code = "nobody_ready"


class HeldOutMissing(Invalid):
    code = "held_out_missing"


class RunNameTaken(Conflict):
    code = "run_name_taken"


def create(session: Session, spec: RunFile, now: datetime) -> Run:
    """A draft; its blocks and its head are prepared outside the web process."""
    model = models.ready(session, spec.model)
    _check_name_free(session, spec.name)
    held_out = _held_out(session, spec)
    calibration.check(spec)
    run = Run(
        id=keys.new_id("run"), name=spec.name, model_id=model.id, spec=spec.model_dump(mode="json"), state=RunState.DRAFT,
        files=[], trained_blocks=[], participants=[], created_at=now,
    )  # fmt: skip
    session.add(run)
    session.flush()
    payload = PreparePayload(
        config=model.config, files=model.files, blocks=model.blocks,
        task=spec.task.kind, num_labels=spec.task.num_labels, label_names=spec.task.label_names, max_length=spec.task.max_length,
        patterns=spec.schedule.blocks, always=spec.schedule.always, layers_per_block=spec.schedule.layers_per_block,
        seed=spec.seed, held_out=held_out,
    )  # fmt: skip
    jobs.enqueue(session, JobKind.PREPARE, run.id, payload.model_dump(mode="json"))
    record(session, "info", "run_created", f"run {run.name} created", run_id=run.id)
    return run


def _check_name_free(session: Session, name: str) -> None:
    # A name may be used again once its run has ended: people run the same file twice.
    for run in session.scalars(select(Run).where(Run.name == name)):
        if not RUN.is_final(run.state):
            raise RunNameTaken(f"run {name!r} is {run.state}; cancel it, or give this one another name", run_id=run.id)


def _held_out(session: Session, spec: RunFile) -> HeldOutRef | None:
    if spec.evaluate is None:
        return None
    if spec.evaluate.digest is None or session.get(HeldOut, spec.evaluate.digest) is None:
        raise HeldOutMissing("the held-out file must be uploaded first (PUT /v1/held-out/{digest}) and its digest given in evaluate.digest")
    return calibration.held_out_ref(spec)


def prepared(session: Session, job: Job, result: PrepareResult) -> None:
    run = session.get_one(Run, job.subject, with_for_update=True)
    if run.prepared or RUN.is_final(run.state):
        return
    blocks = [
        Block(
            run_id=run.id, name=block.name, position=position, kind=block.kind, version=0, digest=block.digest, size=block.size,
            num_parameters=block.num_parameters, tensors=[t.model_dump() for t in block.tensors],
        )
        for position, block in enumerate(result.blocks)
    ]  # fmt: skip
    spec = RunFile.model_validate(run.spec)
    try:
        exposure.check(spec, result.trained, budget.common(spec, blocks))
    except exposure.ExposureBudgetTooSmall as error:
        _fail(session, run, error.code, error.message)
        return
    session.add_all(blocks)
    run.files = [f.model_dump() for f in result.files]
    run.trained_blocks = result.trained
    run.rounds_total = rounds_in(spec, result.trained)
    session.flush()
    spec = RunFile.model_validate(run.spec)
    if not calibration.request_influence(session, run, spec):  # else it is prepared once that is measured
        _is_prepared(session, run)
    emulators.request_ahead(session, run)
    rows = f", {result.held_out_rows:,} held-out rows" if result.held_out_rows is not None else ""
    record(session, "info", "run_prepared", f"run {run.name}: {len(result.blocks)} blocks, {run.rounds_total} rounds{rows}", run_id=run.id)


def influence_measured(session: Session, job: Job, result: InfluenceResult) -> None:
    run = session.get_one(Run, job.subject, with_for_update=True)
    if not run.prepared and not RUN.is_final(run.state):
        calibration.influence_measured(session, run, result)
        _is_prepared(session, run)


def _is_prepared(session: Session, run: Run) -> None:
    run.prepared = True
    signals.offers_changed(session)


def prepare_failed(session: Session, job: Job) -> None:
    run = session.get_one(Run, job.subject, with_for_update=True)
    if not RUN.is_final(run.state):
        code = job.error_code or "prepare_failed"
        _fail(session, run, code, job.error or "")


def _fail(session: Session, run: Run, code: str, reason: str) -> None:
    run.state, run.reason, run.ended_at = RUN.after(run.state, RunEvent.FAIL), reason, utcnow()
    record(session, "error", code, f"run {run.name} could not be prepared: {reason}", run_id=run.id)


def start(session: Session, name: str, now: datetime, anyway: bool = False) -> Run:
    """Begin with the agents that are there; others join when they come. `anyway`: with all of them, whoever is there."""
    run = queries.run_by_name(session, name, lock=True)
    state = RUN.after(run.state, RunEvent.START)
    if not run.prepared:
        raise RunNotPrepared(f"run {run.name} is still being prepared; try again in a moment")
    spec = RunFile.model_validate(run.spec)
    run.participants = _participants(session, run, spec, anyway)
    exposure.check(spec, run.trained_blocks, budget.common(spec, queries.blocks_of(session, run.id)), len(run.participants))
    run.state, run.started_at = state, now
    record(session, "info", "run_started", f"run {run.name} started with {len(run.participants)} agents", run_id=run.id)
    rounds.evaluate_if_due(session, run, 0)
    rounds.open_next(session, run, now)
    return run


def _participants(session: Session, run: Run, spec: RunFile, anyway: bool) -> list[str]:
    members = readiness.members(session, run, spec)
    if spec.agents != "all" and (unknown := sorted(set(spec.agents) - {member.name for member in members})):
        raise NoAgents(f"these agents of the run file are not enrolled: {', '.join(unknown)}", unknown=unknown)
    if not members:
        raise NoAgents("no agent is enrolled; make a token with `fedcoord agents token` and enrol one with `fedagent enroll`")
    if not anyway and not any(member.takes_part for member in members):
        raise NobodyReady(
            f"nobody is there to take part: {readiness.listed(members)}. Start again when an agent is "
            "(`fedagent run`, `fedagent check` on its machine), or start anyway",
            agents={member.name: str(member.standing) for member in members[:100]},
        )
    return [member.id for member in members if anyway or member.takes_part]


def pause(session: Session, name: str) -> Run:
    """No further round begins; what is being trained is finished and applied."""
    run = queries.run_by_name(session, name, lock=True)
    run.state, run.reason, run.waits_for_agents = RUN.after(run.state, RunEvent.PAUSE), "paused by the operator", False
    record(session, "info", "run_paused", f"run {run.name} paused by the operator", run_id=run.id)
    return run


def resume(session: Session, name: str, now: datetime) -> Run:
    """Go on where it stopped; failures are forgotten, and agents that were passed over are asked again."""
    run = queries.run_by_name(session, name, lock=True)
    run.state, run.reason, run.waits_for_agents = RUN.after(run.state, RunEvent.RESUME), None, False
    readiness.forget_refusals(session, run.id)
    pending = (Assignment.run_id == run.id) & (Assignment.state == AssignmentState.PENDING)
    for assignment in session.scalars(select(Assignment).where(pending).with_for_update()).all():
        assignment.failures, assignment.excluded, assignment.waiting_since = 0, [], now
        rounds.offer(session, assignment.meant_for)
        rounds.pause_if_hopeless(session, run, assignment, "enrol another agent, or cancel the run")
    jobs.requeue_failed(session, run.id, REPEATED)
    record(session, "info", "run_resumed", f"run {run.name} resumed", run_id=run.id)
    rounds.open_next(session, run, now)
    return run


def cancel(session: Session, name: str, now: datetime) -> Run:
    """End the run for good; agents that train for it learn it when they renew their lease. What was applied stays."""
    run = queries.run_by_name(session, name, lock=True)
    run.state, run.reason, run.ended_at = RUN.after(run.state, RunEvent.CANCEL), "cancelled by the operator", now
    record(session, "warning", "run_cancelled", f"run {run.name} cancelled by the operator", run_id=run.id)
    return run


def engine_failed(session: Session, job: Job) -> None:
    """A delta could not be judged or applied (a full disk, say): nothing is changed, and the run waits for the operator."""
    run = session.get_one(Run, job.subject, with_for_update=True)
    message = f"{job.kind} failed: {job.error}"
    if run.state == RunState.RUNNING:
        run.state, run.reason = RUN.after(run.state, RunEvent.PAUSE), message
    record(session, "error", job.error_code or "engine_failed", f"run {run.name} paused: {message}; mend it, then resume", run_id=run.id)


def report_failed(session: Session, job: Job) -> None:
    record(session, "error", job.error_code or f"{job.kind}_failed", f"{job.kind} failed: {job.error}", run_id=job.subject)


def request_export(session: Session, name: str) -> Job:
    """Have the present model joined to a directory of files; works in every state once the run is prepared."""
    run = queries.run_by_name(session, name)
    if not run.prepared:
        raise RunNotPrepared(f"run {run.name} has no model yet")
    payload = ExportPayload(
        after_rounds=queries.rounds_closed(session, run.id), task=RunFile.model_validate(run.spec).task.kind,
        files=run.files, blocks=queries.shard_refs(queries.blocks_of(session, run.id)),
    )  # fmt: skip
    return jobs.enqueue(session, JobKind.EXPORT, run.id, payload.model_dump(mode="json"))


def export_of(session: Session, name: str, job_id: str) -> ExportResult | None:
    """The files of an export, or None while it is being made."""
    run = queries.run_by_name(session, name)
    job = session.get(Job, job_id)
    if job is None or job.subject != run.id or job.kind != JobKind.EXPORT:
        raise NotFound(f"run {run.name} has no export {job_id!r}")
    if job.state == JobState.FAILED:
        raise Conflict(f"the export failed: {job.error}")
    return ExportResult.model_validate(job.result) if job.result is not None else None
