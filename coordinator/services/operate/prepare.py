"""Creates a run and prepares it: its blocks, its head, its rounds."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Block, Model, Run
from fedcybgd.coordinator.domain import exposure, fresh_parts
from fedcybgd.coordinator.domain.jobs.measurements import HeldOutRef, ImportancePayload, ImportanceResult, InfluencePayload, InfluenceResult
from fedcybgd.coordinator.domain.jobs.payloads import PreparePayload, PrepareResult
from fedcybgd.coordinator.domain.jobs.registry import PREPARE, Done, Failed
from fedcybgd.coordinator.domain.methods.registry import method_of, rounds_in
from fedcybgd.coordinator.domain.run import RUN
from fedcybgd.coordinator.domain.run_file import RunFile, RunFileInvalid
from fedcybgd.coordinator.errors import Conflict, Invalid
from fedcybgd.coordinator.services.emulators import choose, exposure_budget
from fedcybgd.coordinator.services.measure import calibration
from fedcybgd.coordinator.services.operate import held_out, models
from fedcybgd.coordinator.services.path import ahead
from fedcybgd.coordinator.services.records import jobs, keys, versions
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import runs
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.files.labels import check_names


class HeldOutMissing(Invalid):
    code = "held_out_missing"


class RunNameTaken(Conflict):
    code = "run_name_taken"


def create(session: Session, spec: RunFile, now: datetime, anchor_of: str | None = None) -> Run:
    """A draft; its blocks and its head are prepared outside the web process. `anchor_of`: the id of a run that it is the anchor of."""
    model = models.ready(session, spec.model)
    _check_name_free(session, spec.name)
    scored_on = _held_out(session, spec)
    calibration.check_calibration(spec)
    method_of(spec)
    _check_labels(spec)
    run = Run(
        id=keys.new_id("run"), name=spec.name, model_id=model.id, spec=spec, state=RUN.start, state_since=now,
        files=[], notes=[], trained_blocks=[], participants=[], without=[], anchor_of=anchor_of, created_at=now,
    )  # fmt: skip
    session.add(run)
    session.flush()
    payload = PreparePayload(
        **dict(spec.task.spec), config=model.config, files=model.files, blocks=model.blocks,
        patterns=spec.schedule.blocks, always=spec.schedule.always, layers_per_block=spec.schedule.layers_per_block,
        seed=spec.seed, held_out=scored_on, adapters=spec.adapters, corrections=spec.corrections,
        head_start=spec.schedule.head_start,
    )  # fmt: skip
    jobs.enqueue(session, PREPARE, run.id, payload, now)
    record(session, now, "info", "run_created", f"run {run.name} created", run_id=run.id)
    return run


def _check_labels(spec: RunFile) -> None:
    # Not a rule of the run file: runs that were made before there was one are read, too.
    try:
        check_names(spec.task.label_names or ())
    except ValueError as error:
        raise RunFileInvalid(f"task.labels: {error}") from error


def _check_name_free(session: Session, name: str) -> None:
    # A name may be used again once its run has ended: people run the same file twice.
    for run in session.scalars(select(Run).where(Run.name == name)):
        if not RUN.is_final(run.state):
            raise RunNameTaken(f"run {name!r} is {run.state}; cancel it, or give this one another name", run_id=run.id)


def _held_out(session: Session, spec: RunFile) -> HeldOutRef | None:
    if spec.evaluate is None:
        return None
    if spec.evaluate.digest is None or held_out.used(session, spec.evaluate.digest) is None:
        raise HeldOutMissing("the held-out file must be uploaded first (PUT /v1/held-out/{digest}) and its digest given in evaluate.digest")
    return calibration.held_out_ref(spec)


def prepared(session: Session, done: Done[PreparePayload, PrepareResult]) -> None:
    result, now = done.result, done.now
    run = session.get_one(Run, done.subject, with_for_update=True)
    if run.prepared or RUN.is_final(run.state):
        return
    blocks = [
        Block(
            run_id=run.id, name=block.name, position=position, kind=block.kind, version=0, changes=0, digest=block.digest, size=block.size,
            num_parameters=block.num_parameters, tensors=block.tensors,
        )
        for position, block in enumerate(result.blocks)
    ]  # fmt: skip
    spec = run.spec
    try:
        method_of(spec).check(spec, result.trained, exposure_budget.common(spec, blocks))
    except exposure.ExposureBudgetTooSmall as error:
        _fail(session, run, error.code, error.message, now)
        return
    session.add_all(blocks)
    versions.prepared(session, blocks, now)
    run.files = result.files
    run.notes = _notes(session.get_one(Model, run.model_id), blocks, spec)
    run.trained_blocks = result.trained
    run.rounds_total = rounds_in(spec, result.trained)
    session.flush()
    spec = run.spec
    if not calibration.request_influence(session, run, spec, now):  # else it goes on once that is measured
        _goes_on(session, run, now)
    choose.request_ahead(session, run, ahead.trained(session, run, spec, 0), now)
    rows = f", {counted(result.held_out_rows, 'held-out row')}" if result.held_out_rows is not None else ""
    record(
        session,
        now,
        "info",
        "run_prepared",
        f"run {run.name}: {counted(len(result.blocks), 'block')}, {counted(run.rounds_total, 'round')}{rows}",
        run_id=run.id,
    )


def _notes(model: Model, blocks: Sequence[Block], spec: RunFile) -> list[str]:
    shapes = [(b.name, {t.name: t.shape for t in b.tensors}) for b in blocks]
    available = {t.name: t.shape for block in model.blocks for t in block.tensors}
    return fresh_parts.notes(shapes, available, model.config, spec.task.label_names)


def influence_measured(session: Session, done: Done[InfluencePayload, InfluenceResult]) -> None:
    run = session.get_one(Run, done.subject, with_for_update=True)
    if not run.prepared and not RUN.is_final(run.state):
        calibration.influence_measured(session, run, done.result)
        _goes_on(session, run, done.now)


def importance_measured(session: Session, done: Done[ImportancePayload, ImportanceResult]) -> None:
    run = session.get_one(Run, done.subject, with_for_update=True)
    if not run.prepared and not RUN.is_final(run.state):
        calibration.importance_measured(session, run, done.result, done.now)
        _is_prepared(session, run)


def importance_failed(session: Session, failed: Failed[ImportancePayload]) -> None:
    """No run waits for an order that cannot be had: its blocks come in ascending order, and the event says so."""
    run = session.get_one(Run, failed.subject, with_for_update=True)
    if not run.prepared and not RUN.is_final(run.state):
        calibration.failed(session, failed, "the importance of the blocks (schedule.order), which come in ascending order therefore,")
        _is_prepared(session, run)


def _goes_on(session: Session, run: Run, now: datetime) -> None:
    """With what is measured next, where the run file asks for it, before the run is prepared."""
    if not calibration.request_importance(session, run, run.spec, now):
        _is_prepared(session, run)


def _is_prepared(session: Session, run: Run) -> None:
    runs.prepare(run)
    signals.offers_changed(session)


def prepare_failed(session: Session, failed: Failed[BaseModel]) -> None:
    run = session.get_one(Run, failed.subject, with_for_update=True)
    if not RUN.is_final(run.state):
        _fail(session, run, failed.code, failed.message, failed.now)


def _fail(session: Session, run: Run, code: str, reason: str, now: datetime) -> None:
    runs.fail(run, reason, now)
    record(session, now, "error", code, f"run {run.name} could not be prepared: {reason}", run_id=run.id)
