"""Whether the rounds so far did harm, by the held-out loss that is measured while the next is trained."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Run
from fedcybgd.coordinator.domain import gate
from fedcybgd.coordinator.domain.gate import GateVerdict
from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, EvaluateResult
from fedcybgd.coordinator.domain.jobs.registry import Done, Failed
from fedcybgd.coordinator.domain.seat import called
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.path import give_up
from fedcybgd.coordinator.services.records.events import record

NO_NUMBER = "loss_not_finite"


def loss_measured(session: Session, done: Done[EvaluatePayload, EvaluateResult]) -> None:
    """Keep a loss, and look whether the rounds since the one before did harm."""
    run = session.get_one(Run, done.subject, with_for_update=True)
    scores.loss_measured(session, done)
    session.flush()
    losses, known = scores.losses_until(session, run.id, done.payload.after_rounds)
    if run.spec.admission.gate == "off" or not known or len(losses) < 2:
        return
    if (found := gate.verdicts(losses)[-1]) != GateVerdict.FINE:
        _tell(session, run, done.payload.after_rounds, found, f"the held-out loss rose from {losses[-2]:.4g} to {losses[-1]:.4g}", done.now)


def loss_failed(session: Session, failed: Failed[EvaluatePayload]) -> None:
    """A model that has no loss any more is damaged; another failure says nothing of it."""
    run = session.get_one(Run, failed.subject, with_for_update=True)
    scores.loss_failed(session, failed)
    if failed.code == NO_NUMBER and failed.payload.after_rounds and run.spec.admission.gate != "off":
        _tell(session, run, failed.payload.after_rounds, GateVerdict.GROSS, "the held-out loss is no number any more", failed.now)


def _tell(session: Session, run: Run, after_rounds: int, found: GateVerdict, what: str, now: datetime) -> None:
    by = select(Assignment.agent_id, Assignment.blocks).where(
        Assignment.run_id == run.id, Assignment.round == after_rounds - 1, Assignment.applied
    )
    who = ", ".join(f"{called(row.blocks)} by {queries.agent_name(session, row.agent_id)}" for row in session.execute(by))
    text = f"{what} with round {after_rounds - 1} ({who}), out of all proportion to what it did before"
    record(session, now, "warning", "held_out_worse", text, run_id=run.id, round=after_rounds - 1)
    if found == GateVerdict.GROSS:
        give_up.pause(
            session, run, f"{text}: the model seems to be damaged; look at these deltas, go back to an earlier round, or resume", now
        )
