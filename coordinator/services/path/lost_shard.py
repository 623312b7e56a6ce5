"""An agent asks for a blob that is lost: it is made again where it can be, and nobody stops but the run that needs it."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Patch, Run
from fedcybgd.coordinator.domain.jobs.payloads import EncodePayload
from fedcybgd.coordinator.domain.jobs.registry import ENCODE
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.services.emulators import mending, shards
from fedcybgd.coordinator.services.path import give_up
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.coordinator.storage import BlobMissing
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef


class BlobAwaited(CoordinatorError):
    """A blob of the manifest is lost. It is made again, or a person puts it back: ask again."""

    code = "blob_awaited"
    status = 503


def wanted(session: Session, error: CoordinatorError, run_id: str, kind: str, now: datetime) -> CoordinatorError:
    """An agent asks for a blob that is lost: have it made again, or pause the run with the reason. What to answer the agent.

    Of a patch it is told that there is none: it has other ways to the shard.
    """
    digest = str(error.detail["digest"])
    run = session.get_one(Run, run_id, with_for_update=True)
    if kind == "patch":
        for patch in session.scalars(select(Patch).where(Patch.digest == digest)):
            session.delete(patch)
        return BlobMissing(f"the patch {digest} is lost; take the whole shard", digest=digest)
    answer = BlobAwaited(f"blob {digest} is lost here; it is made again, or put back: ask again", digest=digest)
    if _is_under_way(session, run.id, digest):
        return answer
    found = mending.payload_of(session, digest)
    encoded = [ShardRef(block="any", version=0, codec=way.codec, digest=way.source, size=0) for way in found.ways if way.kind == "encode"]
    exact = [ShardRef(block="any", version=0, codec=EXACT, digest=digest, size=0) for way in found.ways if way.kind != "encode"]
    payload = mending.say_lost(session, error, run.id, now)
    if refs := (encoded or exact)[:1]:
        request = EncodePayload(config=payload.config or shards.config_of(run), task=run.spec.task.kind, wanted=refs, mends=digest)
        jobs.enqueue(session, ENCODE, run.id, request, now)
    else:
        why = f"{mending.names_of(session, digest)} is lost ({digest}) and cannot be made again: {mending.put_back(session, digest)}"
        give_up.pause(session, run, why, now)
    return answer


def _is_under_way(session: Session, run_id: str, digest: str) -> bool:
    return any(payload.mends == digest for payload in jobs.unfinished(session, ENCODE, run_id))
