"""Makes older versions of blocks again, in the codecs that agents hold, with the steps from the present ones to them."""

from fedcybgd.coordinator.domain.jobs.payloads import EncodedRef, Restoration, RestorePayload, RestoreResult
from fedcybgd.coordinator.engine.apply import add_deltas
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.storage import BlobDamaged, EngineStore
from fedcybgd.shared.contract.codec import EXACT


def restore(store: EngineStore, payload: RestorePayload) -> RestoreResult:
    """Deterministic to the bit. Raises `BlobMissing` or `BlobDamaged` for what it would take and is not there."""
    encoder = ShardEncoder(store, payload.config, payload.task)
    result = RestoreResult(replayed=[])
    for block in payload.blocks:
        make_again(store, block)
        new = block.target.digest
        if block.replay is not None:
            replayed, velocity = add_deltas(store, block.replay)
            result.replayed.append(replayed)
            if velocity is not None:
                result.velocities[replayed.block] = velocity
            new = replayed.digest
        for old in (ref for ref in payload.before if ref.source == block.present.digest and ref.codec != EXACT):
            _encode(encoder, old, new, result)
    return result


def make_again(store: EngineStore, block: Restoration) -> None:
    """The older version of a block is in the store. Raises `BlobMissing`, `BlobDamaged`."""
    wanted = [digest for digest in (block.target.digest, block.velocity) if digest is not None]
    if not all(map(store.has, wanted)):
        for change in block.way:
            add_deltas(store, change)
    if block.way and not all(map(store.has, wanted)):
        name = f"block {block.target.block}, version {block.target.version}"
        raise BlobDamaged(f"{name}: its deltas make something else now; `fedcoord verify` says more", digest=block.target.digest)
    for digest in wanted:
        store.check(digest)
        store.touch(digest)


def _encode(encoder: ShardEncoder, old: EncodedRef, source: str, result: RestoreResult) -> None:
    shard, patch = encoder.stepped(source, old.codec, old)
    result.shards.append(shard)
    if patch is not None:
        result.patches.append(patch)
