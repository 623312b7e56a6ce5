"""The gate: has the held-out loss of a round asked for before it counts, where the run file wants that."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Run
from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, ApplyResult, GatePayload
from fedcybgd.coordinator.domain.jobs.registry import GATE
from fedcybgd.coordinator.services.measure import calibration, scores
from fedcybgd.coordinator.services.records import jobs


def ask_before(session: Session, run: Run, payload: ApplyPayload, made: ApplyResult, now: datetime) -> bool:
    """Have the new versions scored before they count, where the run file wants that and there is something to score them on."""
    measured_on = calibration.calibration_of(session, run, run.spec) if run.spec.admission.gate == "enforce" else None
    if measured_on is None:
        return False
    losses, known = scores.losses_until(session, run.id, payload.round)
    asked = GatePayload(**dict(measured_on), applied=payload, made=made, losses=losses, known=known)
    jobs.enqueue(session, GATE, run.id, asked, now)
    return True
