"""What becomes of a finished or failed job: one table from kind to use case."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import Session

from coordinator.db.base import utcnow
from coordinator.db.models import Job
from coordinator.domain.job import (
    MAX_TRIES,
    AdmitResult,
    ApplyResult,
    EncodeResult,
    EvaluateResult,
    ExportResult,
    ImportResult,
    JobKind,
    JobState,
    PrepareResult,
)
from coordinator.domain.measurements import FidelityResult, InfluenceResult
from coordinator.services import calibration, lost_deltas, models, rounds, runs, shards, signals

Succeeded = Callable[[Session, Job, Any], None]
Failed = Callable[[Session, Job], None]


def _nothing_more(session: Session, job: Job, result: BaseModel) -> None:
    """The result in the job's row is all."""


OUTCOMES: dict[JobKind, tuple[type[BaseModel], Succeeded, Failed]] = {
    JobKind.ADMIT: (AdmitResult, rounds.judged, lost_deltas.judging_failed),
    JobKind.APPLY: (ApplyResult, rounds.applied, lost_deltas.judging_failed),
    JobKind.ENCODE: (EncodeResult, shards.encoded, runs.engine_failed),
    JobKind.INFLUENCE: (InfluenceResult, runs.influence_measured, runs.prepare_failed),
    JobKind.FIDELITY: (FidelityResult, calibration.fidelity_measured, calibration.fidelity_failed),
    JobKind.LOSS: (EvaluateResult, calibration.loss_measured, calibration.loss_failed),
    JobKind.PREPARE: (PrepareResult, runs.prepared, runs.prepare_failed),
    JobKind.IMPORT: (ImportResult, models.imported, models.import_failed),
    JobKind.EVALUATE: (EvaluateResult, calibration.scored, calibration.score_failed),
    JobKind.EXPORT: (ExportResult, _nothing_more, runs.report_failed),
}


def complete(session: Session, job_id: str, result: dict[str, Any]) -> None:
    """Record a job's result and let it take effect, in one transaction: exactly once, whatever is repeated."""
    job = session.get_one(Job, job_id, with_for_update=True)
    if job.state != JobState.RUNNING:
        return
    result_type, succeeded, _ = OUTCOMES[JobKind(job.kind)]
    job.state, job.result, job.ended_at = JobState.DONE, result, utcnow()
    succeeded(session, job, result_type.model_validate(result))


def fail(session: Session, job_id: str, code: str, message: str, try_again: bool = False) -> None:
    """Record that a job failed; `try_again` (its process died) lets it wait again until its tries are used up."""
    job = session.get_one(Job, job_id, with_for_update=True)
    if job.state != JobState.RUNNING:
        return
    if try_again and job.tries < MAX_TRIES:
        job.state = JobState.QUEUED
        signals.start_lane(session, job.lane)
        return
    job.state, job.error_code, job.error, job.ended_at = JobState.FAILED, code, message, utcnow()
    OUTCOMES[JobKind(job.kind)][2](session, job)
