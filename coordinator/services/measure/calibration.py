"""The calibration rows of a run, and what is measured on them before it begins: the influence of its layers, the importance of its blocks."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Block, Run
from fedcybgd.coordinator.domain.jobs.measurements import (
    Calibration,
    HeldOutRef,
    ImportancePayload,
    ImportanceResult,
    InfluencePayload,
    InfluenceResult,
)
from fedcybgd.coordinator.domain.jobs.registry import IMPORTANCE, INFLUENCE, Failed
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.measured import Failure


class CalibrationMissing(Invalid):
    code = "calibration_missing"


def check_calibration(spec: RunFile) -> None:
    """Raises `CalibrationMissing` for a policy that cannot do without calibration rows where there are none."""
    compression = spec.compression
    there = spec.evaluate is not None and compression.calibration_rows > 0
    if not there and (compression.policy == "hybrid" or compression.floor is not None):
        what = "policy `hybrid` chooses layers" if compression.policy == "hybrid" else "`compression.floor` is judged"
        raise CalibrationMissing(f"{what} by calibration rows: give `evaluate.held_out`, and `compression.calibration_rows` above 0")


def has_calibration(spec: RunFile) -> bool:
    return spec.evaluate is not None and spec.evaluate.digest is not None and spec.compression.calibration_rows > 0


def calibration_of(session: Session, run: Run, spec: RunFile) -> Calibration | None:
    """The run's model as it is now, and its calibration rows; None where it has none."""
    if not has_calibration(spec):
        return None
    return Calibration(
        **dict(spec.task.spec), files=run.files, blocks=queries.exact_shards(session, run.id), held_out=held_out_ref(spec),
        rows=spec.compression.calibration_rows,
    )  # fmt: skip


def held_out_ref(spec: RunFile) -> HeldOutRef:
    assert spec.evaluate is not None
    assert spec.evaluate.digest is not None
    name = spec.evaluate.held_out.replace("\\", "/").rsplit("/", 1)[-1]
    return HeldOutRef(digest=spec.evaluate.digest, name=name, columns=spec.evaluate.columns, how=spec.evaluate.table_format())


def request_influence(session: Session, run: Run, spec: RunFile, now: datetime) -> bool:
    """Have the influence of layers measured, where the policy goes by it; whether it is needed before the run can start."""
    calibration = calibration_of(session, run, spec)
    if calibration is None or spec.compression.policy not in ("hybrid", "auto"):
        return False
    payload = InfluencePayload(**dict(calibration))
    jobs.enqueue(session, INFLUENCE, run.id, payload, now)
    return True


def influence_measured(session: Session, run: Run, result: InfluenceResult) -> None:
    for block in session.scalars(select(Block).where(Block.run_id == run.id)):
        block.influence = result.influence.get(block.name)


def request_importance(session: Session, run: Run, spec: RunFile, now: datetime) -> bool:
    """The same of the importance of the visited blocks, where the order of cycles goes by it."""
    calibration = calibration_of(session, run, spec)
    if calibration is None or spec.schedule.order != "importance":
        return False
    jobs.enqueue(session, IMPORTANCE, run.id, ImportancePayload(**dict(calibration), visited=run.trained_blocks), now)
    return True


def importance_measured(session: Session, run: Run, result: ImportanceResult, now: datetime) -> None:
    blocks = queries.blocks_of(session, run.id)
    for block in blocks:
        block.importance = result.importance.get(block.name)
    text = f"run {run.name}: its blocks come by importance, {', '.join(by_importance(blocks))}"
    record(session, now, "info", "importance_measured", text, run_id=run.id)


def by_importance(blocks: Sequence[Block]) -> list[str]:
    """Those that are known, the most important first, equal ones in the order of the model; none where it was not measured."""
    return [block.name for block in sorted(blocks, key=lambda b: (-(b.importance or 0.0), b.position)) if block.importance is not None]


def failed(session: Session, failed: Failed[BaseModel], what: str) -> Failure:
    """Say to people that something could not be measured; returns what is kept in its place."""
    text = f"{what} could not be measured: {failed.message}; the run goes on"
    record(session, failed.now, "error", failed.code, text, run_id=failed.subject)
    return Failure(code=failed.code, message=failed.message[:500])
