"""Runs beside each other, as the pages show them: thinned curves, the last scores, and what makes the comparison unfair."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Model, Run
from fedcybgd.coordinator.services.read import series
from fedcybgd.shared.contract.comparison import RunScores, doubts
from fedcybgd.shared.contract.run_views import SeriesView
from fedcybgd.shared.contract.views import RunSummary

LOOKED_AT = 100
"""Visits of which the memory is told"""


@dataclass(frozen=True)
class Beside:
    compared: RunScores
    series: SeriesView


@dataclass(frozen=True)
class RunsBeside:
    runs: Sequence[Beside]
    doubts: Sequence[str]


def of(session: Session, names: Sequence[str], points: int) -> RunsBeside:
    """In the order of `names`; one that is named twice stands once. Raises `NotFound`."""
    runs = list({run.id: run for run in (queries.run_by_name(session, name) for name in names)}.values())
    known = [run.name for run in runs]
    found = [_one(session, run, run.name if known.count(run.name) == 1 else run.id, points) for run in runs]
    return RunsBeside(found, list(doubts([one.compared for one in found])))


def _one(session: Session, run: Run, called: str, points: int) -> Beside:
    measured = series.of_run(session, run, points)
    model = session.scalars(select(Model.name).where(Model.id == run.model_id)).one()
    summary = RunSummary(model=model, **{name: getattr(run, name) for name in RunSummary.model_fields if name != "model"})
    scores = [score for score in measured.evaluations if score.loss is not None]
    spec = run.spec
    kept = run.conclusion.score if run.conclusion is not None else None
    anchor = queries.anchor_of(session, run.id)
    head = queries.final_score(session, anchor) if anchor is not None else None
    held_out = spec.evaluate.digest if spec.evaluate is not None else None
    return Beside(
        RunScores(
            summary, spec.method, str(spec.task), spec.seed, held_out, scores, _peak(session, run), called, kept, head, spec.task.kind
        ),
        measured,
    )


def _peak(session: Session, run: Run) -> int | None:
    """The most that one of the last visits needed."""
    last = select(Assignment.metrics).where(Assignment.run_id == run.id, Assignment.round >= run.rounds_done - LOOKED_AT)
    newest = session.scalars(last.order_by(Assignment.round.desc()).limit(LOOKED_AT))
    return max((metrics.peak_memory_bytes for metrics in newest if metrics is not None), default=0) or None
