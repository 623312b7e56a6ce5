"""Compares a delta that was measured with those that its run accepted before."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Block, Round, Run
from fedcybgd.coordinator.domain import band
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.band import AcceptedDelta, AcceptedDeltas, BandResult, BlockDelta
from fedcybgd.coordinator.services.path import delivered, trained


def measured(session: Session, assignment: Assignment, found: Mapping[str, BlockDelta]) -> dict[str, BlockDelta]:
    """What was measured, with what the visit could have come to."""
    claimed = assignment.metrics.steps if assignment.metrics is not None else 1
    seconds = delivered.seconds_since(session.get_one(Round, (assignment.run_id, assignment.round)), assignment.submitted_at)
    steps = band.believed_steps(assignment.train, claimed, seconds)
    return {
        block: delta.model_copy(update={"reach": band.reach(assignment.train, block, delta, steps)})
        for block, delta in found.items()
        if block in assignment.train.trained
    } | {
        block: found[block].model_copy(update={"reach": band.reach_of_corrections(assignment.train, shapes.values(), steps)})
        for block, shapes in trained.corrected_matrices(session, assignment).items()
        if block in found
    }


@dataclass(frozen=True)
class Compared:
    """What the accepted deltas of a run say of one that was measured."""

    against: BandResult | None
    """what there is against it; what its agent is to blame for comes first"""
    no_work: str | None
    """what tells that the visited blocks were not trained at all"""


def with_accepted(session: Session, run: Run, assignment: Assignment) -> Compared:
    """Read the deltas that the run accepted, once, and look at this one beside them."""
    found, agent = assignment.measured or {}, assignment.agent_id or ""
    kinds = {row.name: row.kind for row in session.execute(select(Block.name, Block.kind).where(Block.run_id == run.id))}
    past = AcceptedDeltas(_past(session, run.id, kinds), agent, len({*run.participants, agent}))
    rules = run.spec.admission
    against = [
        result
        for block, delta in found.items()
        if (result := band.out_of_band(*_as_compared(block, kinds[block], delta), delta, past, rules)) is not None
    ]
    signs = [band.no_work(block, delta, past) for block, delta in found.items() if block in assignment.blocks]
    said = [sign for sign in signs if sign is not None]
    return Compared(
        against=min(against, key=lambda result: not result.blamed, default=None),
        no_work=said[0] if said and len(said) == len(signs) else None,
    )


def _as_compared(block: str, kind: str, delta: BlockDelta) -> tuple[str, str]:
    """Block and kind under which a delta is compared: a correction goes less far than a visit, and another way."""
    return (f"{block} (corrections)", f"{kind} (corrections)") if delta.correction else (block, kind)


def _past(session: Session, run_id: str, kinds: Mapping[str, str]) -> list[AcceptedDelta]:
    accepted = (Assignment.run_id == run_id) & (Assignment.state == AssignmentState.ACCEPTED) & Assignment.measured.is_not(None)
    newest = select(Assignment.round, Assignment.agent_id, Assignment.measured).where(accepted)
    rows = session.execute(newest.order_by(Assignment.round.desc(), Assignment.seat.desc()).limit(band.REMEMBERED)).all()
    return [
        AcceptedDelta(*_as_compared(block, kinds[block], delta), row.round, row.agent_id or "", delta)
        for row in rows
        for block, delta in (row.measured or {}).items()
    ]
