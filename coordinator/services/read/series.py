"""The scores of a run against what they had cost, thinned so that a picture of ten thousand rounds is as small as one of ten."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Evaluation, Model, Round, Run
from fedcybgd.coordinator.domain.methods.registry import method_of, place_of
from fedcybgd.coordinator.services.read import lists
from fedcybgd.coordinator.services.records import ledgers
from fedcybgd.shared.contract.run_views import LossView, SeriesView
from fedcybgd.shared.contract.views import EvaluationView

BFLOAT16 = 2
"""Bytes of a weight"""
DIRECTIONS = 2


def of_run(session: Session, run: Run, points: int) -> SeriesView:
    """At most about so many points of each kind, evenly spread over the rounds so far."""
    spacing = max(1, -(-run.rounds_done // points))
    visits = visits_of(session, run)
    parameters = session.scalars(select(Model.num_parameters).where(Model.id == run.model_id)).one()
    return SeriesView(
        spacing=spacing, evaluations=_evaluations(session, run.id, spacing),
        losses=_losses(session, run, spacing), bytes=ledgers.bytes_of(ledgers.totals(session, run.id)),
        visits=visits, fedavg_bytes=visits * DIRECTIONS * BFLOAT16 * parameters,
    )  # fmt: skip


def visits_of(session: Session, run: Run) -> int:
    """Of closed rounds; by the shape of rounds, for to count ten million rows takes seconds."""
    if not run.rounds_done:
        return 0
    before = run.spec.schedule.rounds_before
    first = _seats(session, run, 0) if before else 0
    if method_of(run.spec).trains_all(run.spec):
        return first + (run.rounds_done - before) * _seats(session, run, run.rounds_done - 1)
    blocks = len(run.trained_blocks)
    cycle, place = place_of(run.spec, run.trained_blocks, run.rounds_done)
    return first + cycle * blocks + min(blocks, place * run.spec.in_cycle(cycle).schedule.wave)


def _seats(session: Session, run: Run, number: int) -> int:
    return len(session.scalars(select(Round.seats).where(Round.run_id == run.id, Round.number == number)).one_or_none() or ())


def _evaluations(session: Session, run_id: str, spacing: int) -> list[EvaluationView]:
    """The first, then the next one that is so many rounds later, and so on, and the last: each is found by itself in the index."""
    mine = Evaluation.run_id == run_id
    at = select(func.min(Evaluation.after_rounds).label("rounds")).where(mine).cte("at", recursive=True)
    later = select(func.min(Evaluation.after_rounds)).where(mine, Evaluation.after_rounds >= at.c.rounds + spacing).correlate(at)
    apart = select(at.union_all(select(later.scalar_subquery()).where(at.c.rounds.is_not(None))).c.rounds)
    chosen = [rounds for rounds in session.scalars(apart) if rounds is not None]
    last = session.scalar(select(func.max(Evaluation.after_rounds)).where(mine))
    here = Evaluation.after_rounds.in_({*chosen, *([] if last is None else [last])})
    rows = session.execute(lists.EVALUATION_ROWS.where(mine, here).order_by(Evaluation.after_rounds))
    return [lists.evaluation(row) for row in rows]


def _losses(session: Session, run: Run, spacing: int) -> list[LossView]:
    """The loss before the first round, and after rounds that are evenly apart."""
    numbers = sorted({*range(spacing - 1, run.rounds_done, spacing), run.rounds_done - 1} - {-1})
    first = session.execute(select(Round.loss_before, Round.opened_at).where(Round.run_id == run.id, Round.number == 0)).one_or_none()
    found = [LossView(after_rounds=0, loss=first[0], at=first[1])] if first is not None and first[0] is not None else []
    columns = select(Round.number, Round.loss_after, Round.closed_at)
    rows = session.execute(columns.where(Round.run_id == run.id, Round.number.in_(numbers)).order_by(Round.number))
    return found + [
        LossView(after_rounds=row.number + 1, loss=row.loss_after, at=row.closed_at) for row in rows if row.loss_after is not None
    ]
