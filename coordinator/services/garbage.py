"""Deletes blobs that nothing needs any more: superseded shards, applied deltas, old exports."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import Assignment, Block, EncodedShard, HeldOut, Job, Model, Patch, Round, Run
from coordinator.domain.assignment import AssignmentState
from coordinator.domain.job import JobKind, JobState
from coordinator.domain.round import RoundState
from coordinator.services.shards import MAX_STEPS
from coordinator.storage import BlobStore

UNFINISHED = (AssignmentState.PENDING, AssignmentState.LEASED, AssignmentState.SUBMITTED)
EXPORTS_KEPT = timedelta(days=1)


def needed(session: Session, now: datetime) -> set[str]:
    """The digests that a model, a run, an unfinished assignment, a job or a recent export still needs."""
    digests = set(session.scalars(select(Block.digest))) | set(session.scalars(select(HeldOut.digest)))
    for files, blocks in session.execute(select(Model.files, Model.blocks)):
        digests |= {entry["digest"] for entry in (*files, *blocks)}
    for files in session.scalars(select(Run.files)):
        digests |= {entry["digest"] for entry in files}
    for manifest in session.scalars(select(Assignment.manifest).where(Assignment.state.in_(UNFINISHED))):
        digests |= _digests_in(manifest)
    shards, patches = _present(session)
    digests |= {digest for row in shards for digest in (row.digest, row.packed_digest)} | {row.digest for row in patches}
    for delta in session.scalars(_unapplied()):
        if delta is not None:
            digests.add(delta)
    for payload in session.scalars(select(Job.payload).where(Job.state != JobState.DONE)):
        digests |= _digests_in(payload)
    recent = select(Job.result).where(Job.kind == JobKind.EXPORT, Job.state == JobState.DONE, Job.ended_at > now - EXPORTS_KEPT)
    for result in session.scalars(recent):
        digests |= _digests_in(result)
    return digests


def _present(session: Session) -> tuple[list[EncodedShard], list[Patch]]:
    """The encoded shards of blocks that a model or a run has now, and the steps that lead to them."""
    sources = set(session.scalars(select(Block.digest)))
    for blocks in session.scalars(select(Model.blocks)):
        sources |= {entry["digest"] for entry in blocks}
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


def _unapplied() -> Any:
    return (
        select(Assignment.delta_digest)
        .join(Round, (Round.run_id == Assignment.run_id) & (Round.number == Assignment.round))
        .where(Round.state != RoundState.CLOSED)
    )


def _digests_in(value: Any) -> set[str]:
    """All digests anywhere in a payload or result."""
    if isinstance(value, dict):
        return set().union(*map(_digests_in, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(_digests_in, value)) if value else set()
    return {value} if isinstance(value, str) and len(value) == 64 else set()


def collect(store: BlobStore, keep: set[str], written_before: float) -> int:
    """Delete what is not in `keep` and was written before a point in time; returns how many blobs went.

    What is younger may belong to a transaction that has not committed yet.
    """
    count = 0
    for digest, written in store.stored():
        if digest not in keep and written < written_before:
            store.delete(digest)
            count += 1
    return count
