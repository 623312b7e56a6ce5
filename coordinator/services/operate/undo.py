"""What follows once the engine has made older versions: they are the present ones, and what came after them is undone."""

from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent, Assignment, Block, Evaluation, Round, Run
from fedcybgd.coordinator.domain.assignment import NOT_COUNTED, TakenBack
from fedcybgd.coordinator.domain.jobs.payloads import RestorePayload, RestoreResult
from fedcybgd.coordinator.domain.jobs.registry import ADMIT, APPLY, EVALUATE, GATE, LOSS, Done, Failed
from fedcybgd.coordinator.domain.run import RUN, UNDONE, RunState
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.emulators import shards
from fedcybgd.coordinator.services.operate import rollback
from fedcybgd.coordinator.services.path import open_round
from fedcybgd.coordinator.services.records import jobs, versions
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import assignments, rounds, runs
from fedcybgd.shared.contract.sizes import counted


def restored(session: Session, done: Done[RestorePayload, RestoreResult]) -> None:
    payload, now = done.payload, done.now
    run = session.get_one(Run, done.subject, with_for_update=True)
    if RUN.is_final(run.state):
        text = f"run {run.name} has ended, and was not taken back"
        record(session, now, "warning", "rollback_failed", text, run_id=run.id)
        return
    blocks = queries.blocks_of(session, run.id)
    if {block.name: block.version for block in blocks} != payload.versions:
        rollback.ask(session, run, payload.after_rounds, payload.without, now)  # what was sent before the pause was applied meanwhile
        return
    shards.keep_made(session, done.result.shards, done.result.patches)
    _go_back(session, run, {block.name: block for block in blocks}, done)
    dropped = _undo_rounds(session, run, payload, now)
    runs.undo(run, payload.after_rounds, "", now)
    said = (
        _reopen(session, run, payload, now)
        if payload.without is not None
        else f"taken back to after {counted(payload.after_rounds, 'round')}"
    )
    run.reason = f"{said}; {counted(dropped, 'round')} {'is' if dropped == 1 else 'are'} dropped. {UNDONE}"
    record(session, now, "warning", "run_rolled_back", f"run {run.name} {run.reason}", run_id=run.id)
    signals.openings_changed(session)


def failed(session: Session, failed: Failed[BaseModel]) -> None:
    run = session.get_one(Run, failed.subject, with_for_update=True)
    text = f"it could not be taken back, and its model is as it was: {failed.message}"
    if run.state == RunState.PAUSED:
        run.reason = text[:2000]
    record(session, failed.now, "error", failed.code, text, run_id=failed.subject)


def _go_back(session: Session, run: Run, blocks: dict[str, Block], done: Done[RestorePayload, RestoreResult]) -> None:
    made, known = {ref.block: ref for ref in done.result.replayed}, versions.facts(session, run.id)
    for one in done.payload.blocks:
        block = blocks[one.target.block]
        versions.restored(session, run.id, block, known[block.name], one.target, one.velocity, done.now)
        if one.replay is not None:
            velocity = done.result.velocities.get(block.name)
            versions.replayed(session, run.id, block, one.replay, made[block.name], velocity, done.payload.after_rounds, done.now)
    session.flush()


def _undo_rounds(session: Session, run: Run, payload: RestorePayload, now: datetime) -> int:
    """Undo all visits since, but those that were added again; returns how many rounds are gone."""
    since = (Assignment.run_id == run.id) & (Assignment.round >= payload.after_rounds) & Assignment.state.not_in(NOT_COUNTED)
    for visit in session.scalars(select(Assignment).where(since).with_for_update()).all():
        if visit.id not in payload.replayed:
            assignments.undo(visit, TakenBack.ROLLED_BACK, now)
    first = payload.after_rounds if payload.without is None else payload.after_rounds + 1
    dropped = session.scalars(select(Round).where(Round.run_id == run.id, Round.number >= first)).all()
    for round in dropped:
        session.delete(round)
    session.execute(delete(Evaluation).where(Evaluation.run_id == run.id, Evaluation.after_rounds > payload.after_rounds))
    jobs.skip(session, ADMIT, run.id, now)
    jobs.skip(session, APPLY, run.id, now)
    jobs.skip(session, GATE, run.id, now)
    for measured in (LOSS, EVALUATE):
        jobs.skip(session, measured, run.id, now, lambda waiting: waiting.after_rounds > payload.after_rounds)
    session.flush()
    return len(dropped)


def _reopen(session: Session, run: Run, payload: RestorePayload, now: datetime) -> str:
    """Have the seats of the agent's first round that are free now trained by others."""
    agent, round = session.get_one(Agent, payload.without), session.get_one(Round, (run.id, payload.after_rounds))
    run.without = [*run.without, agent.id]
    run.participants = [member for member in run.participants if member != agent.id]
    rounds.undo(round)
    taken = {session.get_one(Assignment, visit).seat for visit in payload.replayed}
    there = readiness.there(session, run.id, run.participants)
    for seat in round.seats:
        if seat.number not in taken:
            open_round.assign(session, run, run.spec, seat, now, there=there, excluded=[agent.id])
    kept, again = len(payload.replayed), len(round.seats) - len(taken)
    deltas = f"{counted(kept, 'delta')} of others in round {round.number} {'is as it was' if kept == 1 else 'are as they were'}"
    return f"without {agent.name}: {deltas}, {counted(again, 'seat')} {'is' if again == 1 else 'are'} trained again"
