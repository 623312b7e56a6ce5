"""What becomes of a finished or failed job: one table from kind to use case."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Job
from fedcybgd.coordinator.domain.job import (
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
from fedcybgd.coordinator.domain.measurements import FidelityResult, InfluenceResult
from fedcybgd.coordinator.services import signals
from fedcybgd.coordinator.services.emulators import fidelity, shards
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.operate import exports, models, prepare
from fedcybgd.coordinator.services.path import close_round, give_up, judge, lost_delta
from fedcybgd.coordinator.services.states import jobs as states

Succeeded = Callable[[Session, Job, Any], None]
Failed = Callable[[Session, Job], None]


def _nothing_more(session: Session, job: Job, result: BaseModel) -> None:
    """The result in the job's row is all."""


OUTCOMES: dict[JobKind, tuple[type[BaseModel], Succeeded, Failed]] = {
    JobKind.ADMIT: (AdmitResult, judge.judged, lost_delta.judging_failed),
    JobKind.APPLY: (ApplyResult, close_round.applied, lost_delta.judging_failed),
    JobKind.ENCODE: (EncodeResult, shards.encoded, give_up.engine_failed),
    JobKind.INFLUENCE: (InfluenceResult, prepare.influence_measured, prepare.prepare_failed),
    JobKind.FIDELITY: (FidelityResult, fidelity.fidelity_measured, fidelity.fidelity_failed),
    JobKind.LOSS: (EvaluateResult, scores.loss_measured, scores.loss_failed),
    JobKind.PREPARE: (PrepareResult, prepare.prepared, prepare.prepare_failed),
    JobKind.IMPORT: (ImportResult, models.imported, models.import_failed),
    JobKind.EVALUATE: (EvaluateResult, scores.scored, scores.score_failed),
    JobKind.EXPORT: (ExportResult, _nothing_more, exports.report_failed),
}


def complete(session: Session, job_id: str, result: dict[str, Any]) -> None:
    """Record a job's result and let it take effect, in one transaction: exactly once, whatever is repeated."""
    job = session.get_one(Job, job_id, with_for_update=True)
    if job.state != JobState.RUNNING:
        return
    result_type, succeeded, _ = OUTCOMES[JobKind(job.kind)]
    states.finish(job, result, utcnow())
    succeeded(session, job, result_type.model_validate(result))


def fail(session: Session, job_id: str, code: str, message: str, try_again: bool = False) -> None:
    """Record that a job failed; `try_again` (its process died) lets it wait again until its tries are used up."""
    job = session.get_one(Job, job_id, with_for_update=True)
    if job.state != JobState.RUNNING:
        return
    if try_again and job.tries < MAX_TRIES:
        states.interrupt(job)
        signals.start_lane(session, job.lane)
        return
    states.fail(job, code, message, utcnow())
    OUTCOMES[JobKind(job.kind)][2](session, job)
