"""Deletes blobs that nothing needs any more: superseded shards, applied deltas, old exports."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from pydantic import JsonValue
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Block, EncodedShard, Garbage, HeldOut, Job, Model, Patch, Round, Run
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.kinds import JobKind, JobState, OnFailure
from fedcybgd.coordinator.domain.jobs.registry import kinds_that
from fedcybgd.coordinator.domain.round import RoundState
from fedcybgd.coordinator.domain.run import RUN, RunState
from fedcybgd.coordinator.services.emulators.shards import MAX_STEPS
from fedcybgd.coordinator.storage import BlobStore

UNFINISHED = (AssignmentState.PENDING, AssignmentState.LEASED, AssignmentState.SUBMITTED)
ENDED = tuple(state for state in RunState if RUN.is_final(state))
EXPORTS_KEPT = timedelta(days=1)


def needed(session: Session, now: datetime) -> set[str]:
    """The digests that a model, a run, an unfinished assignment, a job or a recent export still needs."""
    digests = set(session.scalars(select(Block.digest))) | set(session.scalars(select(HeldOut.digest)))
    for files, blocks in session.execute(select(Model.files, Model.blocks)):
        digests |= {file.digest for file in files} | {block.digest for block in blocks}
    for files in session.scalars(select(Run.files)):
        digests |= {entry.digest for entry in files}
    open_runs = select(Run.id).where(Run.state.not_in(ENDED))
    unfinished = Assignment.state.in_(UNFINISHED) & Assignment.run_id.in_(open_runs)
    for manifest in session.scalars(select(Assignment.manifest).where(unfinished)):
        digests |= manifest.digests()
    shards, patches = _present(session)
    digests |= {digest for row in shards for digest in (row.digest, row.packed_digest)} | {row.digest for row in patches}
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


def _present(session: Session) -> tuple[list[EncodedShard], list[Patch]]:
    """The encoded shards of blocks that a model or a run has now, and the steps that lead to them."""
    sources = set(session.scalars(select(Block.digest)))
    for blocks in session.scalars(select(Model.blocks)):
        sources |= {entry.digest for entry in blocks}
    shards = [row for row in session.scalars(select(EncodedShard)) if row.source in sources]
    rows: dict[str, list[Patch]] = {}
    for patch in session.scalars(select(Patch)):
        rows.setdefault(patch.target, []).append(patch)
    patches: list[Patch] = []
    targets = {row.digest for row in shards}
    for _ in range(MAX_STEPS):
        steps = [patch for target in targets for patch in rows.pop(target, [])]
        patches += steps
        targets = {patch.base for patch in steps}
    return shards, patches


def forget(session: Session) -> None:
    """Delete what is written of encoded shards and patches that lead nowhere any more; their blobs go at the next sweep."""
    shards, patches = _present(session)
    kept: set[EncodedShard | Patch] = {*shards, *patches}
    for row in [*session.scalars(select(EncodedShard)), *session.scalars(select(Patch))]:
        if row not in kept:
            session.delete(row)


def _unapplied() -> Select[str | None]:
    return (
        select(Assignment.delta_digest)
        .join(Round, (Round.run_id == Assignment.run_id) & (Round.number == Assignment.round))
        .where(Round.state != RoundState.CLOSED)
    )


def _digests_in(value: JsonValue) -> set[str]:
    """All digests anywhere in a payload or result."""
    if isinstance(value, dict):
        return set().union(*map(_digests_in, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(_digests_in, value)) if value else set()
    return {value} if isinstance(value, str) and len(value) == 64 else set()


def due(session: Session, stored: Mapping[str, float], now: datetime, grace: timedelta) -> dict[str, float]:
    """Which of the blobs in `stored` (digest → when it was written) may be deleted: nothing has needed them for as long as `grace`.

    Nothing in the database tells what an unfinished job has written. What has become garbage while it was unfinished stays as long as it is.
    """
    keep = needed(session, now)
    marks = {mark.digest: mark for mark in session.scalars(select(Garbage))}
    unfinished = set(session.scalars(select(Job.id).where(Job.state.in_((JobState.QUEUED, JobState.RUNNING)), Job.tries > 0)))
    found: dict[str, float] = {}
    for digest, mark in marks.items():
        if digest in keep or stored.get(digest) != mark.written:
            session.delete(mark)
    session.flush()
    for digest, written in stored.items():
        if digest in keep:
            continue
        before = marks.get(digest)
        if before is None or before.written != written:
            session.add(Garbage(digest=digest, since=now, written=written, jobs=sorted(unfinished)))
        elif now - before.since >= grace and not unfinished & set(before.jobs):
            found[digest] = written
    return found


def collect(store: BlobStore, due: Mapping[str, float]) -> int:
    """Delete blobs, but for those that were written again meanwhile; returns how many went."""
    return sum(store.delete(digest, written) for digest, written in due.items())
