"""Deletes blobs that nothing needs any more: superseded shards, old exports, deltas that no history is kept of."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar

from pydantic import JsonValue
from sqlalchemy import Select, delete, exists, insert, or_, select, tuple_
from sqlalchemy.orm import Session, aliased

from fedcybgd.coordinator.db.models import (
    Assignment,
    Block,
    BlockVersion,
    EncodedShard,
    Garbage,
    HeldOut,
    Job,
    Model,
    ModelUpload,
    Patch,
    Run,
    StoredManifest,
)
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.kinds import JobKind, JobState, OnFailure
from fedcybgd.coordinator.domain.jobs.registry import kinds_that
from fedcybgd.coordinator.domain.run import RUN, RunState
from fedcybgd.coordinator.services.emulators.shards import MAX_STEPS
from fedcybgd.coordinator.storage import BlobStore

UNFINISHED = (AssignmentState.PENDING, AssignmentState.LEASED, AssignmentState.SUBMITTED)
ENDED = tuple(state for state in RunState if RUN.is_final(state))
EXPORTS_KEPT = timedelta(days=1)
CHUNK = 5000
"""Digests, or pairs of them, in one statement."""
Digests = TypeVar("Digests", str, tuple[str, str])


def needed(session: Session, now: datetime) -> set[str]:
    """The digests that a model, a run and its history, an unfinished assignment, a job or a recent export still needs."""
    digests = set(session.scalars(select(Block.digest))) | set(session.scalars(select(HeldOut.digest)))
    for files, blocks in session.execute(select(Model.files, Model.blocks)):
        digests |= {file.digest for file in files} | {block.digest for block in blocks}
    for arriving in session.scalars(select(ModelUpload.files)):
        digests |= {file.digest for file in arriving if file.arrived}
    for files in session.scalars(select(Run.files)):
        digests |= {entry.digest for entry in files}
    open_runs = select(Run.id).where(Run.state.not_in(ENDED))
    unfinished = Assignment.state.in_(UNFINISHED) & Assignment.run_id.in_(open_runs)
    held = select(Assignment.manifest_digest).where(unfinished)
    for manifest in session.scalars(select(StoredManifest.content).where(StoredManifest.digest.in_(held))):
        digests |= manifest.digests()
    digests |= _of_histories(session)
    present = _present(session, _written(session))
    digests |= {digest for row in present.shards for digest in (row.digest, row.packed_digest)}
    digests |= {patch.digest for patches in present.patches.values() for patch in patches}
    for delta in session.scalars(_unapplied()):
        if delta is not None:
            digests.add(delta)
    # A failed measurement is over; a failed judgement or application is repeated when the run is resumed.
    repeated = (Job.state == JobState.FAILED) & Job.kind.in_(kinds_that(OnFailure.REPEATED)) & Job.subject.in_(open_runs)
    for payload in session.scalars(select(Job.payload_json).where(Job.state.in_((JobState.QUEUED, JobState.RUNNING)) | repeated)):
        digests |= _digests_in(payload)
    recent = select(Job.result_json).where(Job.kind == JobKind.EXPORT, Job.state == JobState.DONE, Job.ended_at > now - EXPORTS_KEPT)
    for result in session.scalars(recent):
        digests |= _digests_in(result)
    return digests


def _of_histories(session: Session) -> set[str]:
    """What it takes to make the kept versions of blocks again: where their histories begin, and the deltas since then."""
    exact = session.execute(select(BlockVersion.digest, BlockVersion.velocity).where(BlockVersion.kept, BlockVersion.exact))
    digests = {digest for row in exact for digest in row if digest is not None}
    present = (Block.run_id == BlockVersion.run_id) & (Block.name == BlockVersion.block) & (Block.version == BlockVersion.version)
    carried = select(BlockVersion.velocity).join(Block, present).where(BlockVersion.velocity.is_not(None))
    digests |= {digest for digest in session.scalars(carried) if digest is not None}
    parent = aliased(BlockVersion)
    same = (parent.run_id == BlockVersion.run_id) & (parent.block == BlockVersion.block) & (parent.version == BlockVersion.parent)
    for change in session.scalars(select(BlockVersion.change).join(parent, same).where(BlockVersion.kept, parent.kept)):
        digests |= {term.digest for term in change.terms} if change is not None else set()
        digests |= {change.beside.block.digest} if change is not None and change.beside is not None else set()
    return digests


class _Shard(NamedTuple):
    source: str
    digest: str
    packed_digest: str


class _Step(NamedTuple):
    target: str
    base: str
    digest: str


@dataclass(frozen=True)
class _Shown:
    """What is written of encoded shards and of the steps between them."""

    shards: list[_Shard]
    patches: dict[str, list[_Step]]
    """by their targets, the smallest first: from the version before"""


def _written(session: Session) -> _Shown:
    patches: dict[str, list[_Step]] = {}
    for row in session.execute(select(Patch.target, Patch.base, Patch.digest).order_by(Patch.size, Patch.base)):
        patches.setdefault(row.target, []).append(_Step(*row))
    shards = session.execute(select(EncodedShard.source, EncodedShard.digest, EncodedShard.packed_digest))
    return _Shown([_Shard(*row) for row in shards], patches)


def _present(session: Session, written: _Shown) -> _Shown:
    """Of that, the encoded shards of blocks that a model or a run has now, and the steps that lead to them and to the exact ones; only the last of them
    over several versions.
    """
    sources = set(session.scalars(select(Block.digest)))
    for blocks in session.scalars(select(Model.blocks)):
        sources |= {entry.digest for entry in blocks}
    shards = [row for row in written.shards if row.source in sources]
    patches: dict[str, list[_Step]] = {}
    targets = {row.digest for row in shards} | sources
    for back in range(MAX_STEPS):
        steps = {target: written.patches[target] for target in targets if target in written.patches}
        patches |= steps if back == 0 else {target: found[:1] for target, found in steps.items()}
        targets = {found[0].base for found in steps.values()} - patches.keys()
    return _Shown(shards, patches)


def _unapplied() -> Select[str | None]:
    """Deltas of the rounds that are not closed: of each run the one after those that are done."""
    not_closed = select(Run.id, Run.rounds_done)
    return select(Assignment.delta_digest).where(tuple_(Assignment.run_id, Assignment.round).in_(not_closed))


def _digests_in(value: JsonValue) -> set[str]:
    """All digests anywhere in a payload or result."""
    if isinstance(value, dict):
        return set().union(*map(_digests_in, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(_digests_in, value)) if value else set()
    return {value} if isinstance(value, str) and len(value) == 64 else set()


@dataclass(frozen=True)
class Judged:
    """What is to be done about garbage: found while reading, written down in a moment, and then deleted."""

    due: dict[str, float]
    """the blobs that may be deleted now: digest → when it was written"""
    marks: list[dict[str, object]]
    """of what is garbage since now"""
    unmarked: set[str]
    """what is none any more"""
    sources: set[str]
    """exact shards that nobody has now: what is written of their codecs is forgotten"""
    steps: set[tuple[str, str]]
    """target and base of patches to what is nobody's aim, and of those over several versions to an older one"""


def judge(session: Session, stored: Mapping[str, float], now: datetime, grace: timedelta) -> Judged:
    """Which of the blobs in `stored` (digest → when it was written) may be deleted: nothing has needed them for as long as `grace`.

    Nothing in the database tells what an unfinished job has written. What has become garbage while it was unfinished stays as long as it is.
    All of the database is looked through for it, so nothing is written meanwhile: `note` does that.
    """
    keep = needed(session, now)
    marks = {mark.digest: mark for mark in session.scalars(select(Garbage))}
    unfinished = set(session.scalars(select(Job.id).where(Job.state.in_((JobState.QUEUED, JobState.RUNNING)), Job.tries > 0)))
    unmarked = {digest for digest, mark in marks.items() if digest in keep or stored.get(digest) != mark.written}
    judged = Judged({}, [], unmarked, *_forgotten(session))
    for digest, written in stored.items():
        if digest in keep:
            continue
        before = marks.get(digest)
        if before is None or before.written != written:
            judged.marks.append({"digest": digest, "since": now, "written": written, "jobs": sorted(unfinished)})
        elif now - before.since >= grace and not unfinished & set(before.jobs):
            judged.due[digest] = written
    return judged


def _forgotten(session: Session) -> tuple[set[str], set[tuple[str, str]]]:
    written = _written(session)
    present = _present(session, written)
    all_steps, kept = ({(step.target, step.base) for found in shown.patches.values() for step in found} for shown in (written, present))
    return {row.source for row in written.shards} - {row.source for row in present.shards}, all_steps - kept


def note(session: Session, judged: Judged) -> None:
    """Write down what was judged. What has come into use since then is spared; what is forgotten all the same is made again when it is asked for."""
    for chunk in _chunks(judged.unmarked):
        session.execute(delete(Garbage).where(Garbage.digest.in_(chunk)))
    if judged.marks:
        session.execute(insert(Garbage), judged.marks)
    for chunk in _chunks(judged.sources):
        in_use = exists().where(Block.digest == EncodedShard.source)
        session.execute(delete(EncodedShard).where(EncodedShard.source.in_(chunk), ~in_use))
    for steps in _chunks(judged.steps):
        aimed_at = or_(exists().where(EncodedShard.digest == Patch.target), exists().where(Block.digest == Patch.target))
        session.execute(delete(Patch).where(tuple_(Patch.target, Patch.base).in_(steps), ~aimed_at))


def _chunks(digests: Collection[Digests]) -> Iterator[list[Digests]]:
    ordered = sorted(digests)
    return (ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK))


def collect(store: BlobStore, due: Mapping[str, float]) -> int:
    """Delete blobs, but for those that were written again meanwhile; returns how many went."""
    return sum(store.delete(digest, written) for digest, written in due.items())
