"""Applies accepted deltas to the blocks of a round: version v becomes v + 1, in every codec that agents will ask for."""

from collections.abc import Mapping, Sequence

import torch
from safetensors import safe_open

from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, ApplyResult, Change, EncodedRef, PatchMade
from fedcybgd.coordinator.engine.changes import as_bytes, open_admitted, open_deltas, opened_change
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.engine.outer import new_velocity, old_velocity
from fedcybgd.coordinator.engine.shards import shard_header
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.files.safetensors_header import copy_tensor, pack_header
from fedcybgd.shared.tensors.delta_file import DeltaFile, row_slices, some_rows


def apply(store: EngineStore, payload: ApplyPayload) -> ApplyResult:
    """block ← block + what the aggregate makes of the deltas, in float32 (w_b ← w_b + delta_b in the paper).

    A trained block is float32 from its first delta on: a bf16 weight would lose most of a change of fine-tuning size.
    Deterministic to the bit, so that a repeat after a crash stores the same digests.
    """
    encoder = ShardEncoder(store, payload.config, payload.task)
    result = ApplyResult(blocks=[])
    with open_deltas(store, payload.changes) as deltas:
        for change in payload.changes:
            new, velocity = _apply_block(store, change, deltas)
            result.blocks.append(new)
            if velocity is not None:
                result.velocities[new.block] = velocity
            old = [ref for ref in payload.before if ref.source == change.block.digest]
            shards, patches = _encode(store, encoder, change, new, old)
            result.shards += shards
            result.patches += patches
    return result


def add_deltas(store: EngineStore, change: Change) -> tuple[ShardRef, str | None]:
    """One block alone, in no other codec; the deltas were admitted, and may be of other blocks as well.

    With the digest of what the outer optimizer carries on, where there is one.
    """
    with open_admitted(store, [change], shard_header(store, change.block.digest)) as deltas:
        return _apply_block(store, change, deltas)


def _apply_block(store: EngineStore, change: Change, deltas: Mapping[str, DeltaFile]) -> tuple[ShardRef, str | None]:
    """The next version of a block, some rows at a time: of an embedding, memory would hold base, sum, and every delta in float32."""
    block = change.block
    header = shard_header(store, block.digest)
    opened = opened_change(store, change, header, deltas)
    with (
        store.localised(block.digest) as path,
        old_velocity(store, change) as before,
        new_velocity(store, opened.outer, opened.shapes) as after,
        store.writer() as writer,
    ):
        writer.write(pack_header([(n, "F32" if n in opened.names else tensor.dtype, tensor.shape) for n, tensor in header.tensors.items()]))
        for name, tensor in header.tensors.items():
            if name not in opened.names:  # a buffer: it has no delta
                with path.open("rb") as plain:
                    for chunk in copy_tensor(plain, header, name):
                        writer.write(chunk)
                continue
            for rows in row_slices(tensor.shape):
                with safe_open(path, framework="pt") as file:
                    base = some_rows(file, name, rows).to(torch.float32)
                new, velocity = opened.changed(base, name, tensor.shape, rows, before.some(name, rows))
                writer.write(as_bytes(new))
                if after is not None and velocity is not None:
                    after.write(as_bytes(velocity))
    made = ShardRef(block=block.block, version=block.version + 1, codec=EXACT, digest=writer.digest, size=writer.size)
    return made, after.digest if after is not None else None


def _encode(
    store: EngineStore, encoder: ShardEncoder, change: Change, new: ShardRef, old: Sequence[EncodedRef]
) -> tuple[list[EncodedRef], list[PatchMade]]:
    """The new version in the codecs of the old one and in those that are wanted, and the steps from old to new."""
    before = {ref.codec: ref for ref in old}
    shards = [encoder.encode(new.digest, codec) for codec in sorted({*before, *change.codecs})]
    patches: list[PatchMade] = []
    for shard in shards:
        if shard.codec != EXACT and shard.codec in before and (patch := encoder.difference(before[shard.codec], shard)):
            patches.append(patch)
        elif (
            shard.codec == EXACT
            and len(change.terms) == 1
            and change.outer is None
            and change.beside is None
            and change.terms[0].scale is None
            and store.size(change.terms[0].digest) < shard.packed.size
        ):
            # Whoever trained it, or fetches its delta, can add it as it was added here.
            term = change.terms[0]
            size = store.size(term.digest)
            patches.append(
                PatchMade(kind="delta", target=new.digest, base=change.block.digest, digest=term.digest, size=size, weight=term.weight)
            )
    return shards, patches
