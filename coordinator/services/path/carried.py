"""Error feedback: of which of its deltas an agent carries on what the codec left out."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment
from fedcybgd.shared.contract.assignments import AddedDelta


def of(session: Session, assignment: Assignment, agent_id: str) -> list[AddedDelta]:
    """Of each block that is trained the delta of this agent that was added to it last.

    It is history that is asked, and nothing that the agent says: a delta that was rejected, lost or taken back again is not there.
    """
    wanted, found = set(assignment.train.trained), list[AddedDelta]()
    mine = (Assignment.run_id == assignment.run_id) & (Assignment.agent_id == agent_id) & Assignment.applied
    rows = select(Assignment.id, Assignment.train, Assignment.delta_digest).where(mine)
    for row in session.execute(rows.order_by(Assignment.round.desc(), Assignment.seat.desc())):
        found += [
            AddedDelta(block=block, assignment_id=row.id, digest=row.delta_digest) for block in sorted(wanted & set(row.train.trained))
        ]
        wanted -= set(row.train.trained)
        if not wanted:
            break
    return found
