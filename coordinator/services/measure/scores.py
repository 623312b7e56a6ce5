"""Held-out scores and losses of the model: when they are due, and what came of them."""

from datetime import datetime

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Evaluation, Round, Run
from fedcybgd.coordinator.domain.candidates import is_better
from fedcybgd.coordinator.domain.gate import REMEMBERED
from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, EvaluateResult
from fedcybgd.coordinator.domain.jobs.registry import EVALUATE, LOSS, Done, Failed
from fedcybgd.coordinator.domain.methods.registry import place_of
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.measure import calibration, label_skew
from fedcybgd.coordinator.services.records import jobs, ledgers
from fedcybgd.shared.contract.measured import Failure, Score, Spent
from fedcybgd.shared.contract.sizes import counted

LOSSES = (
    select(Round.loss_before, Round.loss_after)
    .where(Round.run_id == bindparam("run"), Round.number < bindparam("rounds"))
    .order_by(Round.number.desc())
    .limit(REMEMBERED)
)
"""Made once: that costs more than asking."""


def evaluate_if_due(session: Session, run: Run, after_rounds: int, now: datetime) -> None:
    """Have the model scored on the held-out rows: at the start (but for `end`), as often as the run file says, and at the end."""
    spec = run.spec
    request_loss(session, run, spec, after_rounds, now)
    if is_due(run, after_rounds):
        request_score(session, run, after_rounds, now)


def is_due(run: Run, after_rounds: int) -> bool:
    """Whether the model is to be scored as it is after so many rounds."""
    spec = run.spec
    if spec.evaluate is None or spec.evaluate.digest is None:
        return False
    match spec.evaluate.every:
        case "round":
            every = 1
        case "cycle":
            return after_rounds == run.rounds_total or place_of(spec, run.trained_blocks, after_rounds)[1] == 0
        case "end":
            every = run.rounds_total
        case int(number):
            every = number
    return after_rounds == run.rounds_total or (after_rounds % every == 0 and spec.evaluate.every != "end")


def of_run(session: Session, run: Run) -> list[Evaluation]:
    """All so far, the oldest first."""
    query = select(Evaluation).where(Evaluation.run_id == run.id, Evaluation.after_rounds <= run.rounds_done)
    return list(session.scalars(query.order_by(Evaluation.after_rounds)))


def best_of(session: Session, run: Run) -> Evaluation | None:
    """The best so far, and of equals the latest; None: nothing could be scored."""
    best = None
    for evaluation in of_run(session, run):
        if evaluation.metrics.loss is not None and (best is None or not is_better(best.metrics, evaluation.metrics)):
            best = evaluation
    return best


def is_awaited(session: Session, run: Run) -> bool:
    """Whether scores of the run are still being made."""
    return bool(jobs.facts_of_unfinished(session, EVALUATE, run.id, "after_rounds"))


SKIPPED = Failure(code="skipped", message="a newer score was wanted before this one began")


def request_loss(session: Session, run: Run, spec: RunFile, after_rounds: int, now: datetime) -> None:
    """Have the real model's loss on the calibration rows measured, as it is after a number of rounds."""
    measured_on = calibration.calibration_of(session, run, spec)
    if measured_on is None:
        return
    payload = EvaluatePayload(**dict(measured_on), after_rounds=after_rounds)
    jobs.skip(session, LOSS, run.id, now)
    jobs.enqueue(session, LOSS, run.id, payload, now)


def loss_measured(session: Session, done: Done[EvaluatePayload, EvaluateResult]) -> None:
    before, after = _rounds_at(session, done.subject, done.payload)
    if before is not None:
        before.loss_after = done.result.loss
    if after is not None:
        after.loss_before = done.result.loss


def loss_failed(session: Session, failed: Failed[EvaluatePayload]) -> None:
    why = calibration.failed(session, failed, f"the loss on the calibration rows after {counted(failed.payload.after_rounds, 'round')}")
    for round in _rounds_at(session, failed.subject, failed.payload):
        if round is not None:
            round.loss_failed = why


def losses_until(session: Session, run_id: str, rounds: int) -> tuple[list[float], bool]:
    """The losses until after so many rounds, and whether the last of them is known."""
    rows = session.execute(LOSSES, {"run": run_id, "rounds": rounds}).all()[::-1]
    if not rows:
        now = session.scalar(select(Round.loss_before).where(Round.run_id == run_id, Round.number == rounds))
        return ([] if now is None else [now]), now is not None
    found = [rows[0].loss_before, *(row.loss_after for row in rows)]
    return [loss for loss in found if loss is not None], found[-1] is not None


def _rounds_at(session: Session, run_id: str, payload: EvaluatePayload) -> tuple[Round | None, Round | None]:
    """The round after which a loss was to be measured, and the one before which."""
    return session.get(Round, (run_id, payload.after_rounds - 1)), session.get(Round, (run_id, payload.after_rounds))


def request_score(session: Session, run: Run, after_rounds: int, now: datetime) -> None:
    """Have the model scored on all held-out rows, as it is after a number of rounds."""
    payload = scoring_of(session, run, after_rounds).model_copy(update={"spent": spent(session, run, after_rounds, now)})
    # What the training is measured against is not skipped, nor what the end of a run depends on.
    depends = run.spec.keep_best or run.spec.stop is not None
    for skipped in jobs.skip(session, EVALUATE, run.id, now, lambda waiting: waiting.after_rounds > 0 and not depends):
        _keep_score(session, run.id, skipped.after_rounds, _no_score(SKIPPED, skipped.spent), now)
    jobs.enqueue(session, EVALUATE, run.id, payload, now)


def scoring_of(session: Session, run: Run, after_rounds: int) -> EvaluatePayload:
    """The present model, and all held-out rows."""
    return EvaluatePayload(
        **dict(run.spec.task.spec), after_rounds=after_rounds, files=run.files, blocks=queries.exact_shards(session, run.id),
        held_out=calibration.held_out_ref(run.spec),
    )  # fmt: skip


def spent(session: Session, run: Run, after_rounds: int, now: datetime) -> Spent:
    """What the model had cost after so many rounds, which have just been."""
    tokens, since = 0, 0
    for earlier in queries.last_evaluations(session, run.id, 1):
        if earlier.metrics.spent is not None:
            tokens, since = earlier.metrics.spent.tokens, earlier.after_rounds
    if since < after_rounds:
        in_between = Assignment.round >= since, Assignment.round < after_rounds, Assignment.applied
        visits = session.scalars(select(Assignment.metrics).where(Assignment.run_id == run.id, *in_between))
        tokens += sum(metrics.tokens for metrics in visits if metrics is not None)
    sent = ledgers.bytes_of(ledgers.totals(session, run.id))
    seconds = (now - run.started_at).total_seconds() if run.started_at is not None else 0.0
    return Spent(bytes_down=sent.down, bytes_up=sent.up, tokens=tokens, seconds=seconds)


def scored(session: Session, done: Done[EvaluatePayload, EvaluateResult]) -> None:
    score = score_of(done.result).model_copy(update={"spent": done.payload.spent})
    _keep_score(session, done.subject, done.payload.after_rounds, score, done.now, done.result.counted)
    session.flush()
    label_skew.look_at_score(session, done.subject, done.payload.after_rounds, score, done.now)


def score_of(found: EvaluateResult) -> Score:
    return Score.model_validate(found, from_attributes=True)


def score_failed(session: Session, failed: Failed[EvaluatePayload]) -> None:
    after_rounds = failed.payload.after_rounds
    why = calibration.failed(session, failed, f"the score after {counted(after_rounds, 'round')}")
    _keep_score(session, failed.subject, after_rounds, _no_score(why, failed.payload.spent), failed.now)


def _no_score(why: Failure, spent: Spent | None) -> Score:
    return Score(loss=None, accuracy=None, rows=0, seconds=0.0, spent=spent, failed=why)


def _keep_score(
    session: Session, run_id: str, after_rounds: int, score: Score, now: datetime, counted: list[list[int]] | None = None
) -> None:
    undone = session.scalar(select(Run.rounds_done).where(Run.id == run_id, Run.rounds_done < after_rounds)) is not None
    if not undone and session.get(Evaluation, (run_id, after_rounds)) is None:
        session.add(Evaluation(run_id=run_id, after_rounds=after_rounds, metrics=score, counted=counted, created_at=now))
