"""Step 3: which bytes an agent may have under its lease."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from fedcybgd.coordinator.errors import Forbidden
from fedcybgd.coordinator.services.path import lease
from fedcybgd.shared.contract.manifests import ShardRef


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
