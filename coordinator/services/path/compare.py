"""Compares a delta that was measured with those that its run accepted before."""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Block, Round, Run
from fedcybgd.coordinator.domain import band
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.band import AcceptedDelta, BandResult, BlockDelta


def measured(session: Session, assignment: Assignment, found: Mapping[str, BlockDelta]) -> dict[str, BlockDelta]:
    """What was measured, with what the visit could have come to."""
    claimed = assignment.metrics.steps if assignment.metrics is not None else 1
    # From the round on, not from the lease: an agent may send under a later lease what it trained under an earlier one.
    opened, came = session.get_one(Round, (assignment.run_id, assignment.round)).opened_at, assignment.submitted_at
    seconds = (came - opened).total_seconds() if came is not None else 0.0
    steps = band.believed_steps(assignment.train, claimed, seconds)
    return {
        block: delta.model_copy(update={"reach": band.reach(assignment.train, block, delta, steps)})
        for block, delta in found.items()
        if block in assignment.train.trained
    }


def found_against(session: Session, run: Run, assignment: Assignment) -> BandResult | None:
    """What there is against a delta, by those that its run accepted; what its agent is to blame for comes first."""
    kinds, past, agent = _kinds(session, run.id), _past(session, run.id), assignment.agent_id or ""
    among = len({*run.participants, agent})
    found = [
        result
        for block, delta in (assignment.measured or {}).items()
        if (result := band.out_of_band(block, kinds[block], delta, past, run.spec.admission, agent, among)) is not None
    ]
    return min(found, key=lambda result: not result.blamed, default=None)


def no_work(session: Session, run: Run, assignment: Assignment) -> str | None:
    """What tells that the visited blocks were not trained at all."""
    past = _past(session, run.id)
    signs = [band.no_work(block, delta, past) for block, delta in (assignment.measured or {}).items() if block in assignment.blocks]
    found = [sign for sign in signs if sign is not None]
    return found[0] if found and len(found) == len(signs) else None


def _kinds(session: Session, run_id: str) -> dict[str, str]:
    return {row.name: row.kind for row in session.execute(select(Block.name, Block.kind).where(Block.run_id == run_id))}


def _past(session: Session, run_id: str) -> list[AcceptedDelta]:
    kinds = _kinds(session, run_id)
    accepted = (Assignment.run_id == run_id) & (Assignment.state == AssignmentState.ACCEPTED) & Assignment.measured.is_not(None)
    newest = select(Assignment.round, Assignment.agent_id, Assignment.measured).where(accepted)
    rows = session.execute(newest.order_by(Assignment.round.desc(), Assignment.seat.desc()).limit(band.REMEMBERED)).all()
    return [
        AcceptedDelta(block, kinds[block], row.round, row.agent_id or "", delta)
        for row in rows
        for block, delta in (row.measured or {}).items()
    ]
