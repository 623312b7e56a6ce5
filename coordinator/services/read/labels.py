"""How a run's model fares label by label."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Evaluation, Run
from fedcybgd.coordinator.domain.label_tally import label_scores, worst_first
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.shared.contract.measured import LabelScore
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.views import LabelScoresView
from fedcybgd.shared.contract.words import LabelOrder

WORST = 5


def of_evaluation(session: Session, name: str, after_rounds: int, order: LabelOrder, skip: int, limit: int) -> LabelScoresView:
    """Of the model as it was after so many rounds."""
    run = queries.run_by_name(session, name)
    query = select(Evaluation.counted).where(Evaluation.run_id == run.id, Evaluation.after_rounds == after_rounds)
    tallied = session.scalar(query)
    if tallied is None:
        raise NotFound(f"run {run.name} has no scores by label after {counted(after_rounds, 'round')}")
    found = label_scores(tallied, run.spec.task.label_names)
    if order == "worst":
        found = worst_first(found)
    return LabelScoresView(after_rounds=after_rounds, labels=len(found), scores=found[skip : skip + limit])


def worst(session: Session, run: Run) -> list[LabelScore]:
    """A few, of the newest evaluation."""
    if run.spec.task.num_labels is None:
        return []
    newest = select(Evaluation.counted).where(Evaluation.run_id == run.id).order_by(Evaluation.after_rounds.desc()).limit(1)
    return worst_first(label_scores(session.scalar(newest) or (), run.spec.task.label_names))[:WORST]
