"""What a method is told of the deltas that it weighs."""

from datetime import datetime

from fedcybgd.coordinator.db.models import Assignment, Round
from fedcybgd.coordinator.domain import band
from fedcybgd.coordinator.domain.methods.method import Delivered
from fedcybgd.shared.contract.block_names import HEAD


def of(round: Round, assignment: Assignment) -> Delivered:
    """An accepted delta, with the rows that its agent says, if a visit of this round can have trained on so many."""
    said, head = assignment.metrics, (assignment.measured or {}).get(HEAD)
    moved = head.moved if head is not None else None
    if said is None:
        return Delivered(assignment.seat, None, 0, moved)
    steps = band.believed_steps(assignment.train, said.steps, seconds_since(round, assignment.submitted_at))
    return Delivered(assignment.seat, said, min(said.rows, steps * assignment.train.batch_size), moved)


def seconds_since(round: Round, came: datetime | None) -> float:
    """From the round on, not from the lease: an agent may send under a later lease what it trained under an earlier one."""
    return (came - round.opened_at).total_seconds() if came is not None else 0.0
