"""A delta was lost by the coordinator before it was applied: its visit is done again, and nobody is blamed."""

import re

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Assignment, Round, Run
from fedcybgd.coordinator.domain.assignment import AssignmentEvent, AssignmentState
from fedcybgd.coordinator.domain.jobs.mending import LOST
from fedcybgd.coordinator.domain.jobs.registry import Failed
from fedcybgd.coordinator.domain.round import RoundEvent, RoundState
from fedcybgd.coordinator.services.path import give_up
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import assignments, rounds

DIGEST = re.compile("[0-9a-f]{64}")


def judging_failed(session: Session, failed: Failed[BaseModel]) -> None:
    """A delta could not be judged or applied: trained again if it is the delta that is lost, else the run waits for the operator."""
    run = session.get_one(Run, failed.subject, with_for_update=True)
    lost = DIGEST.findall(failed.message) if failed.code in LOST else []
    there = (Assignment.run_id == run.id) & Assignment.delta_digest.in_(lost) & ~Assignment.applied
    waiting = Assignment.state.in_((AssignmentState.SUBMITTED, AssignmentState.ACCEPTED))
    visits = session.scalars(select(Assignment).where(there, waiting).with_for_update()).all()
    if not visits:
        give_up.engine_failed(session, failed)
        return
    for visit in visits:
        assignments.take_back(visit, AssignmentEvent.LOSE, failed.code, failed.now)
        round = session.get_one(Round, (run.id, visit.round))
        if round.state == RoundState.APPLYING:
            rounds.reopen(round, RoundEvent.LOSE)
        text = f"the delta for {visit.called} in round {visit.round} was lost by the coordinator's disk; it is trained again"
        record(session, failed.now, "warning", failed.code, text, run_id=run.id)
        signals.offer(session, visit.id)
