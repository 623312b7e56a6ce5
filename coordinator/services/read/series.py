"""The scores of a run against what they had cost, thinned so that a picture of ten thousand rounds is as small as one of ten."""

from sqlalchemy import bindparam, func, select
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
# Statements are made once: that costs more than asking.
MINE = Evaluation.run_id == bindparam("run")
AT = select(func.min(Evaluation.after_rounds).label("rounds")).where(MINE).cte("at", recursive=True)
LATER = select(func.min(Evaluation.after_rounds)).where(MINE, Evaluation.after_rounds >= AT.c.rounds + bindparam("spacing")).correlate(AT)
APART = select(AT.union_all(select(LATER.scalar_subquery()).where(AT.c.rounds.is_not(None))).c.rounds)
LAST_SCORED = select(func.max(Evaluation.after_rounds)).where(MINE)
SCORES = lists.EVALUATION_ROWS.where(MINE, Evaluation.after_rounds.in_(bindparam("at", expanding=True))).order_by(Evaluation.after_rounds)
OF_RUN = Round.run_id == bindparam("run")
FIRST_LOSS = select(Round.loss_before, Round.opened_at).where(OF_RUN, Round.number == 0)
LOSSES = (
    select(Round.number, Round.loss_after, Round.closed_at)
    .where(OF_RUN, Round.number.in_(bindparam("numbers", expanding=True)))
    .order_by(Round.number)
)
PARAMETERS = select(Model.num_parameters).where(Model.id == bindparam("model"))


def of_run(session: Session, run: Run, points: int) -> SeriesView:
    """At most about so many points of each kind, evenly spread over the rounds so far."""
    spacing = max(1, -(-run.rounds_done // points))
    visits = visits_of(session, run)
    parameters = session.scalars(PARAMETERS, {"model": run.model_id}).one()
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
    chosen = {rounds for rounds in session.scalars(APART, {"run": run_id, "spacing": spacing}) if rounds is not None}
    if (last := session.scalar(LAST_SCORED, {"run": run_id})) is not None:
        chosen.add(last)
    return [lists.evaluation(row) for row in session.execute(SCORES, {"run": run_id, "at": sorted(chosen)})]


def _losses(session: Session, run: Run, spacing: int) -> list[LossView]:
    """The loss before the first round, and after rounds that are evenly apart."""
    numbers = sorted({*range(spacing - 1, run.rounds_done, spacing), run.rounds_done - 1} - {-1})
    first = session.execute(FIRST_LOSS, {"run": run.id}).one_or_none()
    found = [LossView(after_rounds=0, loss=first[0], at=first[1])] if first is not None and first[0] is not None else []
    rows = session.execute(LOSSES, {"run": run.id, "numbers": numbers})
    return found + [
        LossView(after_rounds=row.number + 1, loss=row.loss_after, at=row.closed_at) for row in rows if row.loss_after is not None
    ]
