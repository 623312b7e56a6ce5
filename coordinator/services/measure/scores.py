"""Held-out scores and losses of the model: when they are due, and what came of them."""

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Evaluation, Job, Round, Run
from fedcybgd.coordinator.domain.job import (
    EvaluatePayload,
    EvaluateResult,
    JobKind,
)
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.measure import calibration
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.shared.contract.measured import Failure, Score


def evaluate_if_due(session: Session, run: Run, after_rounds: int) -> None:
    """Have the model scored on the held-out rows: at the start (but for `end`), as often as the run file says, and at the end."""
    spec = run.spec
    request_loss(session, run, spec, after_rounds)
    if spec.evaluate is None or spec.evaluate.digest is None:
        return
    match spec.evaluate.every:
        case "round":
            every = 1
        case "cycle":
            every = method_of(spec).rounds_per_cycle(spec, run.trained_blocks)
        case "end":
            every = run.rounds_total
        case int(number):
            every = number
    if after_rounds != run.rounds_total and (after_rounds % every or spec.evaluate.every == "end"):
        return
    request_score(session, run, spec, after_rounds)


SKIPPED = Failure(code="skipped", message="a newer score was wanted before this one began")


def request_loss(session: Session, run: Run, spec: RunFile, after_rounds: int) -> None:
    """Have the real model's loss on the calibration rows measured, as it is after a number of rounds."""
    measured_on = calibration.calibration_of(session, run, spec)
    if measured_on is None:
        return
    values = measured_on.model_dump(exclude={"rows"})
    payload = EvaluatePayload(**values, after_rounds=after_rounds, rows=measured_on.rows)
    jobs.skip(session, JobKind.LOSS, run.id)
    jobs.enqueue(session, JobKind.LOSS, run.id, payload.model_dump(mode="json"))


def loss_measured(session: Session, job: Job, result: EvaluateResult) -> None:
    before, after = _rounds_at(session, job)
    if before is not None:
        before.loss_after = result.loss
    if after is not None:
        after.loss_before = result.loss


def loss_failed(session: Session, job: Job) -> None:
    after_rounds = EvaluatePayload.model_validate(job.payload).after_rounds
    failed = calibration.failed(session, job, f"the loss on the calibration rows after {after_rounds} rounds")
    for round in _rounds_at(session, job):
        if round is not None:
            round.loss_failed = failed


def _rounds_at(session: Session, job: Job) -> tuple[Round | None, Round | None]:
    """The round after which a loss was to be measured, and the one before which."""
    after_rounds = EvaluatePayload.model_validate(job.payload).after_rounds
    return session.get(Round, (job.subject, after_rounds - 1)), session.get(Round, (job.subject, after_rounds))


def request_score(session: Session, run: Run, spec: RunFile, after_rounds: int) -> None:
    """Have the model scored on all held-out rows, as it is after a number of rounds."""
    payload = EvaluatePayload(
        after_rounds=after_rounds, task=spec.task.kind, num_labels=spec.task.num_labels, label_names=spec.task.label_names,
        max_length=spec.task.max_length, files=run.files, blocks=queries.shard_refs(queries.blocks_of(session, run.id)),
        held_out=calibration.held_out_ref(spec),
    )  # fmt: skip
    # What the training is measured against is not skipped.
    for skipped in jobs.skip(session, JobKind.EVALUATE, run.id, lambda waiting: waiting["after_rounds"] > 0):
        _keep_score(session, skipped, _no_score(SKIPPED))
    jobs.enqueue(session, JobKind.EVALUATE, run.id, payload.model_dump(mode="json"))


def scored(session: Session, job: Job, result: EvaluateResult) -> None:
    _keep_score(session, job, Score(loss=result.loss, accuracy=result.accuracy, rows=result.rows, seconds=result.seconds))


def score_failed(session: Session, job: Job) -> None:
    after_rounds = EvaluatePayload.model_validate(job.payload).after_rounds
    _keep_score(session, job, _no_score(calibration.failed(session, job, f"the score after {after_rounds} rounds")))


def _no_score(why: Failure) -> Score:
    return Score(loss=None, accuracy=None, rows=0, seconds=0.0, failed=why)


def _keep_score(session: Session, job: Job, metrics: Score) -> None:
    after_rounds = EvaluatePayload.model_validate(job.payload).after_rounds
    if session.get(Evaluation, (job.subject, after_rounds)) is None:
        session.add(Evaluation(run_id=job.subject, after_rounds=after_rounds, metrics=metrics, created_at=utcnow()))
