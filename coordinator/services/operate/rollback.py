"""Takes a run back to what it was: after a number of rounds, or before an agent's first delta. Here it is decided, and asked of the engine."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent, Assignment, BlockVersion, EncodedShard, Round, Run
from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.history import lineage
from fedcybgd.coordinator.domain.jobs.payloads import Change, Restoration, RestorePayload, Term
from fedcybgd.coordinator.domain.jobs.registry import RESTORE
from fedcybgd.coordinator.domain.methods.terms import VisitDelta, terms_of
from fedcybgd.coordinator.domain.run import RUN, RunEvent, RunState
from fedcybgd.coordinator.errors import Conflict, NotFound
from fedcybgd.coordinator.services.emulators import shards
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.operate.exports import RunNotPrepared
from fedcybgd.coordinator.services.path import delivered
from fedcybgd.coordinator.services.records import jobs, versions
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import runs
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef

Line = Sequence[BlockVersion]
"""The lineage of a block's present version, the youngest first"""


class RoundUnknown(NotFound):
    """A run has not done so many rounds."""

    code = "round_unknown"


class VersionsGone(Conflict):
    """What it takes to make the older versions again is not kept."""

    code = "versions_not_kept"


class RollbackUnderWay(Conflict):
    """The run is being taken back already."""

    code = "rollback_under_way"


class NeverScored(Conflict):
    """A best is asked for, and no score is there."""

    code = "never_scored"


class NothingToUndo(Conflict):
    """No delta of the agent is part of the model."""

    code = "nothing_to_undo"


def rollback(session: Session, name: str, after_rounds: int | None, now: datetime) -> Run:
    """Have the model made again as it was after so many rounds, None: when it scored best; the run is paused, and is there once the engine
    has done it.
    """
    run = _held(session, name, now)
    if after_rounds is None:
        best = scores.best_of(session, run)
        if best is None:
            raise NeverScored(f"no model of run {run.name} was scored yet (`evaluate` in its run file): say after how many rounds")
        after_rounds = best.after_rounds
    if not 0 <= after_rounds <= run.rounds_done:
        raise RoundUnknown(
            f"run {run.name} has done {run.rounds_done} rounds: it can be taken back to after 0 to {run.rounds_done} of them"
        )
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
        runs.pause(run, "it is being taken back", now)
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
        target = next((row for row in line if _was_there(row, after_rounds, first, name in replays, stay)), None)
        if target is None:
            raise VersionsGone(f"block {name}: what it was after {after_rounds} rounds was before its history began")
        if target is not line[0] or name in replays:
            now_there = queries.shard_refs([present[name]])[0]
            blocks.append(
                Restoration(
                    present=now_there,
                    target=_ref(target),
                    velocity=target.velocity,
                    way=_way(line, target, now_there),
                    replay=replays.get(name),
                )
            )
    before = select(EncodedShard).where(EncodedShard.source.in_([block.present.digest for block in blocks]))
    payload = RestorePayload(
        after_rounds=after_rounds, versions={name: block.version for name, block in present.items()}, blocks=blocks, without=agent_id,
        replayed=sorted(stay), config=shards.config_of(run), task=run.spec.task.kind,
        before=[shards.encoded_ref(row) for row in session.scalars(before.order_by(EncodedShard.source, EncodedShard.codec))],
    )  # fmt: skip
    jobs.enqueue(session, RESTORE, run.id, payload, now)


def lines_of(session: Session, run: Run) -> dict[str, Line]:
    """Block → what its present version is made of, the youngest first."""
    rows: dict[str, dict[int, BlockVersion]] = {}
    for row in versions.of_run(session, run.id):
        rows.setdefault(row.block, {})[row.version] = row
    facts = versions.facts(session, run.id)
    return {
        block.name: [rows[block.name][f.version] for f in lineage(facts.get(block.name, {}), block.version)]
        for block in queries.blocks_of(session, run.id)
    }


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
        return row.round is None or row.round < after_rounds
    if (row.round, row.made_at) == first and not replayed:
        return row.change is not None and {term.visit for term in row.change.terms} <= set(stay)
    return (row.round, row.made_at) < first


def _ref(row: BlockVersion) -> ShardRef:
    return ShardRef(block=row.block, version=row.version, codec=EXACT, digest=row.digest, size=row.size)


def _way(line: Line, target: BlockVersion, present: ShardRef) -> list[Change]:
    """The changes that lead to `target` from a version whose bytes are kept."""
    way: list[Change] = []
    for row in line[line.index(target) :]:
        if row.exact or row.digest == present.digest:
            return way[::-1]
        if not row.kept or row.change is None:
            break
        way.append(row.change)
    raise VersionsGone(
        f"block {target.block}, version {target.version}: what it takes to make it again is not kept; FEDCOORD_KEEP_VERSIONS says how far back that is"
    )


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
