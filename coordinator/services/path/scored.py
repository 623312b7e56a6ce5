"""A score of a run's model is there, or is not to be had: whatever waited for it goes on."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Run
from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, EvaluateResult
from fedcybgd.coordinator.domain.jobs.registry import Done, Failed
from fedcybgd.coordinator.domain.run import RUN
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.path import conclude, open_round


def scored(session: Session, done: Done[EvaluatePayload, EvaluateResult]) -> None:
    run = session.get_one(Run, done.subject, with_for_update=True)
    scores.scored(session, done)
    _go_on(session, run, done.now)


def score_failed(session: Session, failed: Failed[EvaluatePayload]) -> None:
    run = session.get_one(Run, failed.subject, with_for_update=True)
    scores.score_failed(session, failed)
    _go_on(session, run, failed.now)


def _go_on(session: Session, run: Run, now: datetime) -> None:
    session.flush()
    if not RUN.is_final(run.state) and conclude.depends_on_scores(run.spec):
        open_round.open_next(session, run, now)
