"""Notices label skew: by what agents tell of their labels, else by what the held-out rows show. Each sign is told of once a run."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Evaluation, Event, Round, Run
from fedcybgd.coordinator.domain import label_skew
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.training import TrainMetrics

LOOKED_AT = 64
"""Accepted visits of a run by which its agents are compared, the latest ones"""


def look_at_visit(session: Session, run: Run, assignment: Assignment, now: datetime) -> None:
    """A delta was accepted: compare what its agent tells of its labels, if it does, with what the others do."""
    metrics, name = assignment.metrics, queries.agent_name(session, assignment.agent_id)
    if metrics is None or not run.spec.task.is_classification:
        return
    if run.spec.label_skew != "none" and _of_one_label(session, assignment, metrics):
        teaches = "little" if run.spec.label_skew == "smoothed" else "nothing"
        text = f"the rows of {name} seem to have one label, and with train.label_skew {run.spec.label_skew} it teaches {teaches}"
        if not _told(session, run.id, "single_label", assignment.agent_id):
            record(session, now, "warning", "single_label", text, run_id=run.id, agent_id=assignment.agent_id)
    means = run.spec.schedule.head_start == "class_means"
    asked = (run.spec.schedule.head_average == "by_label" and run.spec.schedule.widest > 1) or means
    if asked and metrics.label_counts is None and not _told(session, run.id, "label_counts_missing"):
        text = (
            f"{name} does not tell its label counts (tell_labels in its agent.toml): in heads of waves in which it is each label's row is the mean of the "
            "deltas that move it, however many rows they are of"
        )
        record(session, now, "info", "label_counts_missing", text, run_id=run.id, agent_id=assignment.agent_id)
    if metrics.label_counts is None or _told(session, run.id, "label_skew"):
        return
    session.flush()
    mine = (Assignment.run_id == run.id) & (Assignment.state == AssignmentState.ACCEPTED)
    rows = session.execute(
        select(Assignment.agent_id, Assignment.metrics)
        .where(mine)
        .order_by(Assignment.round.desc(), Assignment.seat.desc())
        .limit(LOOKED_AT)
    ).all()
    counts = {agent: found.label_counts for agent, found in reversed(rows) if found is not None and found.label_counts is not None}
    found = label_skew.divergence(list(counts.values()))
    if found >= label_skew.UNLIKE:
        text = f"the labels of {len(counts)} agents are unlike (divergence {found:.2f} of 1): {label_skew.remedy(run.spec)}"
        record(session, now, "warning", "label_skew", text, run_id=run.id)


def _of_one_label(session: Session, assignment: Assignment, metrics: TrainMetrics) -> bool:
    """Whether its rows seem to have one label: it tells so; or nothing was ever to be learned of them. A loss that came to 0 was learned."""
    if metrics.label_counts is not None:
        return sum(count > 0 for count in metrics.label_counts) == 1
    if not metrics.loss_first == metrics.loss_last == 0.0:
        return False
    mine = (Assignment.run_id == assignment.run_id) & (Assignment.agent_id == assignment.agent_id)
    first = select(Assignment.metrics).where(mine, Assignment.state == AssignmentState.ACCEPTED).order_by(Assignment.round).limit(1)
    before = session.scalar(first)
    return before is None or before.loss_first == before.loss_last == 0.0


def look_at_score(session: Session, run_id: str, after_rounds: int, score: Score, now: datetime) -> None:
    """The model was scored on all held-out rows."""
    if (
        not score.labels_never_right
        or not score.labels_held_out
        or score.loss is None
        or after_rounds == 0
        or _told(session, run_id, "labels_forgotten")
    ):
        return
    rounds = select(Round.loss_after).where(Round.run_id == run_id, Round.number < after_rounds, Round.loss_after.is_not(None))
    losses = [loss for loss in session.scalars(rounds.order_by(Round.number)) if loss is not None]
    scores = session.scalars(select(Evaluation.metrics).where(Evaluation.run_id == run_id).order_by(Evaluation.after_rounds))
    of_scores = [found.loss for found in scores if found.loss is not None]
    if not any(label_skew.forgets(each, score.labels_held_out, score.labels_never_right) for each in (losses, of_scores)):
        return
    run = session.get_one(Run, run_id)
    text = (
        f"after {counted(after_rounds, 'round')} no held-out row of {score.labels_never_right} of {score.labels_held_out} labels is right, and visits raised the "
        f"held-out loss: agents seem to have unlike labels, and each visit unlearns those that its rows lack; {label_skew.remedy(run.spec)}"
    )
    record(session, now, "warning", "labels_forgotten", text, run_id=run.id)


def _told(session: Session, run_id: str, code: str, agent_id: str | None = None) -> bool:
    mine = (Event.run_id == run_id) & (Event.code == code)
    if agent_id is not None:
        mine &= Event.agent_id == agent_id
    return session.scalar(select(Event.id).where(mine).limit(1)) is not None
