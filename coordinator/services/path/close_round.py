"""Step 8: makes the new versions the present ones, closes the round and opens the next."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Block, Round, Run
from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, ApplyResult
from fedcybgd.coordinator.domain.jobs.registry import Done
from fedcybgd.coordinator.domain.round import RoundEvent
from fedcybgd.coordinator.services.emulators import shards
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.path import apply_round, gate, open_round
from fedcybgd.coordinator.services.records import versions
from fedcybgd.coordinator.services.states import rounds


def applied(session: Session, done: Done[ApplyPayload, ApplyResult]) -> None:
    """The new versions are stored: make them the present ones, close the round and open the next, all in one transaction.

    A round of which members came too late for its deadline opens again for them instead. Where the run file wants it, the held-out loss is
    asked before.
    """
    payload, result, now = done.payload, done.result, done.now
    run = session.get_one(Run, done.subject, with_for_update=True)
    round = apply_round.being_applied(session, run, payload)
    if round is not None and not gate.ask_before(session, run, payload, result, now):
        take_over(session, run, round, payload, result, now)


def take_over(session: Session, run: Run, round: Round, payload: ApplyPayload, result: ApplyResult, now: datetime) -> None:
    """Make what the engine made of a round that is being applied the present model."""
    members = apply_round.members(session, round, lock=True)
    before = {change.block.block: change.block for change in payload.changes}
    shards.keep_made(session, result.shards, result.patches)
    for ref in result.blocks:
        block = session.get_one(Block, (run.id, ref.block))
        assert (block.version, block.digest) == (before[ref.block].version, before[ref.block].digest)
        block.version, block.digest, block.size = ref.version, ref.digest, ref.size
        block.changes += 1
    versions.applied(session, run.id, payload, result, now)
    session.flush()
    for member in members:
        member.applied = member.applied or member.id in payload.assignments
    if late := [member for member in members if not member.applied]:
        rounds.reopen(round, RoundEvent.PARTLY_APPLIED)
        for member in late:
            signals.offer(session, member.id)
        return
    rounds.finish(round, now)
    run.rounds_done += 1
    session.flush()
    scores.evaluate_if_due(session, run, round.number + 1, now)
    open_round.open_next(session, run, now)
