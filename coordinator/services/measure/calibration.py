"""The calibration rows of a run, and the influence of its layers, measured on them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Block, Job, Run
from fedcybgd.coordinator.domain.job import HeldOutRef, JobKind
from fedcybgd.coordinator.domain.measurements import Calibration, InfluencePayload, InfluenceResult
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.measured import Failure


class CalibrationMissing(Invalid):
    code = "calibration_missing"


def check(spec: RunFile) -> None:
    """Raises `CalibrationMissing` for a policy that cannot do without calibration rows where there are none."""
    compression = spec.compression
    there = spec.evaluate is not None and compression.calibration_rows > 0
    if not there and (compression.policy == "hybrid" or compression.floor is not None):
        what = "policy `hybrid` chooses layers" if compression.policy == "hybrid" else "`compression.floor` is judged"
        raise CalibrationMissing(f"{what} by calibration rows: give `evaluate.held_out`, and `compression.calibration_rows` above 0")


def calibration_of(session: Session, run: Run, spec: RunFile) -> Calibration | None:
    """The run's model as it is now, and its calibration rows; None where it has none."""
    if spec.evaluate is None or spec.evaluate.digest is None or not spec.compression.calibration_rows:
        return None
    return Calibration(
        task=spec.task.kind, num_labels=spec.task.num_labels, label_names=spec.task.label_names, max_length=spec.task.max_length,
        files=run.files, blocks=queries.shard_refs(queries.blocks_of(session, run.id)), held_out=held_out_ref(spec),
        rows=spec.compression.calibration_rows,
    )  # fmt: skip


def held_out_ref(spec: RunFile) -> HeldOutRef:
    assert spec.evaluate is not None
    assert spec.evaluate.digest is not None
    name = spec.evaluate.held_out.replace("\\", "/").rsplit("/", 1)[-1]
    return HeldOutRef(digest=spec.evaluate.digest, name=name, columns=spec.evaluate.columns, how=spec.evaluate.table_format())


def request_influence(session: Session, run: Run, spec: RunFile) -> bool:
    """Have the influence of layers measured, where the policy goes by it; whether it is needed before the run can start."""
    calibration = calibration_of(session, run, spec)
    if calibration is None or spec.compression.policy not in ("hybrid", "auto"):
        return False
    payload = InfluencePayload(**calibration.model_dump())
    jobs.enqueue(session, JobKind.INFLUENCE, run.id, payload.model_dump(mode="json"))
    return True


def influence_measured(session: Session, run: Run, result: InfluenceResult) -> None:
    for block in session.scalars(select(Block).where(Block.run_id == run.id)):
        block.influence = result.influence.get(block.name)


def failed(session: Session, job: Job, what: str) -> Failure:
    """Say to people that something could not be measured; returns what is kept in its place."""
    code, message = job.error_code or "engine_failed", job.error or ""
    record(session, "error", code, f"{what} could not be measured: {message}; the run goes on", run_id=job.subject)
    return Failure(code=code, message=message[:500])
