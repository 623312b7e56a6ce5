"""The ledgers of what was sent to whom: exposure before the first byte, traffic after the last."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from coordinator.db.models import Exposure, Traffic
from coordinator.errors import Forbidden
from coordinator.services import assignments
from shared.protocol import Manifest, ShardRef


class NotInManifest(Forbidden):
    """An agent gets only what the manifest of its present lease names."""

    code = "not_in_manifest"


@dataclass(frozen=True)
class Wanted:
    """A blob that an agent may have now, and what it is in the ledgers."""

    run_id: str
    round: int
    kind: str
    """shard, patch or file"""
    shards: list[ShardRef]
    """what the agent may have once it has the blob: a delta can be a step of several blocks"""


def lookup(session: Session, assignment_id: str, agent_id: str, digest: str) -> Wanted:
    """What a digest of the manifest stands for: a file, a shard as it is or packed, or a patch that leads to a shard."""
    assignment = assignments.held(session, assignment_id, agent_id)
    manifest = Manifest.model_validate(assignment.manifest)
    whole = [ref for ref in manifest.blocks if digest in (ref.digest, ref.packed.digest if ref.packed else None)]
    if whole:
        return Wanted(assignment.run_id, assignment.round, "shard", whole)
    if patched := [ref for ref in manifest.blocks if any(digest == patch.digest for patch in ref.patches)]:
        return Wanted(assignment.run_id, assignment.round, "patch", patched)
    if any(digest == file.digest for file in manifest.files):
        return Wanted(assignment.run_id, assignment.round, "file", [])
    raise NotInManifest(f"{digest} is not in the manifest of assignment {assignment_id}")


def expose(session: Session, agent_id: str, run_id: str, ref: ShardRef, now: datetime) -> None:
    """Write down that an agent gets a block, before it does."""
    insert = _dialect(session).insert(Exposure)
    values = insert.values(agent_id=agent_id, run_id=run_id, block=ref.block, version=ref.version, codec=ref.codec, first_at=now)
    session.execute(values.on_conflict_do_nothing())


def count(session: Session, run_id: str, round: int, agent_id: str, kind: str, amount: int) -> None:
    """Add bytes that crossed the wire."""
    if amount <= 0:
        return
    insert = _dialect(session).insert(Traffic).values(run_id=run_id, round=round, agent_id=agent_id, kind=kind, bytes=amount)
    keys = ["run_id", "round", "agent_id", "kind"]
    session.execute(insert.on_conflict_do_update(index_elements=keys, set_={"bytes": Traffic.bytes + amount}))


def _dialect(session: Session) -> Any:
    return sqlite if session.get_bind().dialect.name == "sqlite" else postgresql


def ledger(session: Session, agent_id: str | None = None, limit: int = 1000) -> list[Exposure]:
    query = select(Exposure).order_by(Exposure.first_at.desc()).limit(limit)
    return list(session.scalars(query.where(Exposure.agent_id == agent_id) if agent_id else query))


def totals(session: Session) -> dict[str, int]:
    """Bytes per kind, over all runs."""
    return {kind: int(total) for kind, total in session.execute(select(Traffic.kind, func.sum(Traffic.bytes)).group_by(Traffic.kind))}
