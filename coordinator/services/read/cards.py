"""Runs at a glance, for a page of several of them: each costs the same however long its history is."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Evaluation, Model, Round, Run
from fedcybgd.coordinator.domain.seat import called
from fedcybgd.coordinator.services.read import lists, pace, status
from fedcybgd.coordinator.services.records import ledgers
from fedcybgd.shared.contract.views import AnchorView, BytesView, EvaluationView, PaceView, RunSummary

# Statements are made once: that costs more than asking.
MODEL_NAME = select(Model.name).where(Model.id == bindparam("model"))
LAST_SCORES = lists.EVALUATION_ROWS.where(Evaluation.run_id == bindparam("run")).order_by(Evaluation.after_rounds.desc()).limit(5)
FIRST_SCORE = lists.EVALUATION_ROWS.where(Evaluation.run_id == bindparam("run"), Evaluation.after_rounds == 0)
ROUND_BLOCKS = select(Round.blocks).where(Round.run_id == bindparam("run"), Round.number == bindparam("round"))
STATES = (
    select(Assignment.state, func.count())
    .where(Assignment.run_id == bindparam("run"), Assignment.round == bindparam("round"))
    .group_by(Assignment.state)
)


@dataclass(frozen=True)
class RunCard:
    run: RunSummary
    pace: PaceView
    first: EvaluationView | None
    """of the model before any training"""
    last: EvaluationView | None
    """the newest that came to a number; of a run that ended with another model than its last, of that"""
    anchor: AnchorView | None
    """its head alone, trained as often"""
    blocks: str
    """of the round that goes on"""
    states: dict[str, int]
    """state → number of the assignments of that round"""
    sent: BytesView


def going(session: Session, now: datetime, limit: int) -> list[RunCard]:
    """Runs that have not ended, the newest first."""
    rows = session.execute(
        select(Run, Model.name).join(Model, Model.id == Run.model_id).where(Run.state.not_in(lists.FINAL)).order_by(Run.created_at.desc()).limit(limit)
    ).all()  # fmt: skip
    return [_card(session, run, model, now) for run, model in rows]


def of_run(session: Session, run: Run, now: datetime) -> RunCard:
    return _card(session, run, session.scalars(MODEL_NAME, {"model": run.model_id}).one(), now)


def last_score(session: Session, run_id: str) -> EvaluationView | None:
    """The newest of a run that came to a number, among the last few."""
    newest = session.execute(LAST_SCORES, {"run": run_id})
    return next((lists.evaluation(row) for row in newest if row.metrics.loss is not None), None)


def first_score(session: Session, run_id: str) -> EvaluationView | None:
    """Of the model before any training."""
    row = session.execute(FIRST_SCORE, {"run": run_id}).one_or_none()
    return lists.evaluation(row) if row is not None and row.metrics.loss is not None else None


def _card(session: Session, run: Run, model: str, now: datetime) -> RunCard:
    last, kept = last_score(session, run.id), run.conclusion.score if run.conclusion is not None else None
    of_round = {"run": run.id, "round": run.rounds_done}
    names = session.scalar(ROUND_BLOCKS, of_round)
    return RunCard(
        RunSummary(model=model, **{name: getattr(run, name) for name in RunSummary.model_fields if name != "model"}),
        pace.of_run(session, run, now), first_score(session, run.id),
        last.ended_with(kept) if last is not None else None, status.anchor_view(session, run.id), called(names) if names else "",
        {row[0]: row[1] for row in session.execute(STATES, of_round)},
        ledgers.bytes_of(ledgers.totals(session, run.id)),
    )  # fmt: skip
