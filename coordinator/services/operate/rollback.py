"""Takes a run back to what it was: after a number of rounds, or before an agent's first delta. Here it is decided, and asked of the engine."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent, Assignment, BlockVersion, EncodedShard, Round, Run
from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.jobs.payloads import Change, RestorePayload, Term
from fedcybgd.coordinator.domain.jobs.registry import RESTORE
from fedcybgd.coordinator.domain.methods.terms import VisitDelta, terms_of
from fedcybgd.coordinator.domain.run import BEING_UNDONE, RUN, RunEvent, RunState
from fedcybgd.coordinator.errors import Conflict, NotFound
from fedcybgd.coordinator.services.emulators import shards
from fedcybgd.coordinator.services.operate.exports import RunNotPrepared
from fedcybgd.coordinator.services.operate.restorations import Line, is_of, lines_of, restoration, rounds_of
from fedcybgd.coordinator.services.path import delivered
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import runs


class RollbackUnderWay(Conflict):
    """The run is being taken back already."""

    code = "rollback_under_way"


class NothingToUndo(Conflict):
    """No delta of the agent is part of the model."""

    code = "nothing_to_undo"


def rollback(session: Session, name: str, after_rounds: int | None, now: datetime) -> Run:
    """Have the model made again as it was after so many rounds, None: when it scored best; the run is paused, and is there once the engine
    has done it.
    """
    run = _held(session, name, now)
    after_rounds = rounds_of(session, run, after_rounds)
    ask(session, run, after_rounds, None, now)
    return run


def without(session: Session, name: str, agent_name: str, now: datetime) -> Run:
    """Have the deltas of an agent taken out: its first round is made again without it, and later ones, which build on it, are trained again."""
    run = _held(session, name, now)
    agent = session.scalar(select(Agent).where(Agent.name == agent_name))
    if agent is None:
        raise NotFound(f"there is no agent {agent_name!r}; `fedcoord agents list` lists them")
    first = _first_of(session, run, lines_of(session, run), agent.id)
    if first is None:
        raise NothingToUndo(f"no delta of {agent.name} is part of the model of run {run.name}; `fedcoord agents revoke` shuts it out")
    ask(session, run, first[0], agent.id, now)
    return run


def _held(session: Session, name: str, now: datetime) -> Run:
    """The run, locked and paused. Raises `InvalidTransition` for one that has ended or not begun."""
    run = queries.run_by_name(session, name, lock=True)
    RUN.after(run.state, RunEvent.UNDO)
    if not run.prepared:
        raise RunNotPrepared(f"run {run.name} has no model yet")
    if jobs.unfinished(session, RESTORE, run.id):
        raise RollbackUnderWay(f"run {run.name} is being taken back already; wait until `fedcoord run status` says that it is")
    if run.state == RunState.RUNNING:
        runs.pause(run, BEING_UNDONE, now)
        record(session, now, "info", "run_paused", f"run {run.name} paused: it is being taken back", run_id=run.id)
        signals.openings_changed(session)
    return run


def ask(session: Session, run: Run, after_rounds: int, agent_id: str | None, now: datetime) -> None:
    """Decide what each block becomes, and how. Raises `VersionsGone`."""
    lines = lines_of(session, run)
    first = _first_of(session, run, lines, agent_id) if agent_id is not None else None
    present = {block.name: block for block in queries.blocks_of(session, run.id)}
    replays, stay = _replays(session, run, lines, first, agent_id) if first is not None and agent_id is not None else ({}, set[str]())
    blocks = []
    for name, line in lines.items():
        now_there = queries.shard_refs([present[name]])[0]
        replay = replays.get(name)
        was_there = partial(_was_there, after_rounds=after_rounds, first=first, replayed=replay is not None, stay=stay)
        block = restoration(name, line, now_there, was_there, after_rounds)
        if block.target.version != line[0].version or replay is not None:
            blocks.append(block.model_copy(update={"replay": replay}))
    before = select(EncodedShard).where(EncodedShard.source.in_([block.present.digest for block in blocks]))
    payload = RestorePayload(
        after_rounds=after_rounds, versions={name: block.version for name, block in present.items()}, blocks=blocks, without=agent_id,
        replayed=sorted(stay), config=shards.config_of(run), task=run.spec.task.kind,
        before=[shards.encoded_ref(row) for row in session.scalars(before.order_by(EncodedShard.source, EncodedShard.codec))],
    )  # fmt: skip
    jobs.enqueue(session, RESTORE, run.id, payload, now)


def _first_of(session: Session, run: Run, lines: Mapping[str, Line], agent_id: str) -> tuple[int, datetime] | None:
    """Round and time at which the first delta of an agent, of those that are in the model, was applied."""
    mine = set(
        session.scalars(select(Assignment.id).where(Assignment.run_id == run.id, Assignment.agent_id == agent_id, Assignment.applied))
    )
    found = [
        (row.round, row.made_at)
        for line in lines.values() for row in line
        if row.round is not None and row.change is not None and any(term.visit in mine for term in row.change.terms)
    ]  # fmt: skip
    return min(found, default=None)


def _was_there(row: BlockVersion, after_rounds: int, first: tuple[int, datetime] | None, replayed: bool, stay: Collection[str]) -> bool:
    """Whether a version is one of the time that is gone back to."""
    if row.round is None or first is None:
        return is_of(row, after_rounds)
    if (row.round, row.made_at) == first and not replayed:
        return row.change is not None and {term.visit for term in row.change.terms} <= set(stay)
    return (row.round, row.made_at) < first


def _replays(
    session: Session, run: Run, lines: Mapping[str, Line], first: tuple[int, datetime], agent_id: str
) -> tuple[dict[str, Change], set[str]]:
    """What was applied together with the agent's first delta, without its own: the others began from what the model is then.

    And the visits of that round that stay: those, and what was applied of it before. A block whose change is the same without the agent
    stays as it is.
    """
    round = session.get_one(Round, (run.id, first[0]))
    members = {a.id: a for a in queries.assignments_of(session, run.id, round.number) if a.applied}

    def made_of(block: str, terms: Sequence[Term]) -> tuple[list[Term], Aggregate]:
        deltas = [VisitDelta(t.digest, t.visit, delivered.of(round, members[t.visit]), t.scale) for t in terms]
        return terms_of(run.spec.in_cycle(round.cycle), block, deltas, len(round.seats))

    replays, stay = dict[str, Change](), set[str]()
    for name, line in lines.items():
        for row in line:
            if row.change is None or row.round != first[0] or (row.round, row.made_at) > first:
                continue
            terms = [term for term in row.change.terms if members[term.visit].agent_id != agent_id]
            stay |= {term.visit for term in terms}
            if (row.round, row.made_at) == first and terms:
                scale = row.change.terms[0].weight / made_of(name, row.change.terms)[0][0].weight  # 1, or what the gate made of it
                remade, aggregate = made_of(name, terms)
                again = [term.scaled(scale) for term in remade]
                if again != row.change.terms:
                    replays[name] = row.change.model_copy(update={"terms": again, "aggregate": aggregate})
    return replays, stay
