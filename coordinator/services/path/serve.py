"""Step 3: which bytes an agent may have under its lease."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.errors import Forbidden
from fedcybgd.coordinator.services.path import lease, lost_shard
from fedcybgd.coordinator.services.records import ledgers
from fedcybgd.coordinator.storage import BlobDamaged, BlobMissing, BlobStore
from fedcybgd.shared.contract.manifests import ShardRef

LINK_S = 900.0
Clock = Callable[[], datetime]


class NotInManifest(Forbidden):
    """An agent gets only what the manifest of its present lease names."""

    code = "not_in_manifest"


@dataclass(frozen=True)
class HeldBlob:
    """A blob that an agent may have now, and what it is in the ledgers."""

    run_id: str
    round: int
    kind: str
    """shard, patch or file"""
    shards: list[ShardRef]
    """what the agent may have once it has the blob: a delta can be a step of several blocks"""


class Serving:
    """A blob on its way to an agent."""

    def __init__(self, database: Database, agent_id: str, wanted: HeldBlob, link: str | None) -> None:
        self._database, self._agent_id, self._wanted = database, agent_id, wanted
        self.link = link
        """an address elsewhere to fetch it from; None: from here"""

    def count(self, amount: int) -> None:
        """Write down the bytes that crossed the wire, or were asked for and are fetched elsewhere."""
        with self._database.transaction() as session:
            ledgers.count(session, self._wanted.run_id, self._wanted.round, self._agent_id, self._wanted.kind, amount)


def hand_out(
    database: Database, store: BlobStore, assignment_id: str, agent_id: str, digest: str, clock: Clock, elsewhere: bool = False
) -> Serving:
    """A blob of the manifest of a lease that the agent holds; what it gets to know by it is in the ledger before the first byte.

    `elsewhere`: it can be sent to another host for it. There nobody checks the bytes but the agent, who comes back if they are wrong.
    """
    with database.transaction() as session:
        wanted = lookup(session, assignment_id, agent_id, digest)
        for ref in wanted.shards:
            ledgers.expose(session, agent_id, wanted.run_id, ref, clock())
    try:
        link = store.link(digest, LINK_S) if elsewhere else None
        if link is None:
            store.check(digest)  # hashing takes its time: outside of any transaction
    except (BlobMissing, BlobDamaged) as error:
        with database.transaction() as session:
            answer = lost_shard.wanted(session, error, wanted.run_id, wanted.kind, clock())
        raise answer from error
    return Serving(database, agent_id, wanted, link)


def lookup(session: Session, assignment_id: str, agent_id: str, digest: str) -> HeldBlob:
    """What a digest of the manifest stands for: a file, a shard as it is or packed, or a patch that leads to a shard."""
    assignment = lease.held(session, assignment_id, agent_id)
    manifest = assignment.manifest
    whole = [ref for ref in manifest.blocks if digest in (ref.digest, ref.packed.digest if ref.packed else None)]
    if whole:
        return HeldBlob(assignment.run_id, assignment.round, "shard", whole)
    if patched := [ref for ref in manifest.blocks if any(digest == patch.digest for patch in ref.patches)]:
        return HeldBlob(assignment.run_id, assignment.round, "patch", patched)
    if any(digest == file.digest for file in manifest.files):
        return HeldBlob(assignment.run_id, assignment.round, "file", [])
    raise NotInManifest(f"{digest} is not in the manifest of assignment {assignment_id}")
