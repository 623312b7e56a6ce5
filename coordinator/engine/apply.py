"""Applies accepted deltas to the blocks of a round: version v becomes v + 1, in every codec that agents will ask for."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from safetensors import safe_open

from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, ApplyResult, Change, EncodedRef, PatchMade
from fedcybgd.coordinator.engine.changes import open_admitted, open_deltas, opened_change
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.engine.encoding import Encoding
from fedcybgd.coordinator.engine.outer import new_velocity, old_velocity
from fedcybgd.coordinator.engine.planes import BY_NUMPY
from fedcybgd.coordinator.engine.shards import as_bytes, shard_header, write_chunks
from fedcybgd.coordinator.engine.threads import in_order
from fedcybgd.coordinator.storage import BlobDamaged, BlobMissing, EngineStore
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.lossless import PackedError
from fedcybgd.shared.files.safetensors_header import pack_header
from fedcybgd.shared.tensors.codecs import BITS, parse_codec
from fedcybgd.shared.tensors.delta_file import DeltaFile, row_slices, some_rows
from fedcybgd.shared.tensors.dtypes import DTYPES


def apply(store: EngineStore, payload: ApplyPayload) -> ApplyResult:
    """block ← block + what the aggregate makes of the deltas, in float32 (w_b ← w_b + delta_b in the paper).

    A trained block is float32 from its first delta on: a bf16 weight would lose most of a change of fine-tuning size.
    Deterministic to the bit, so that a repeat after a crash stores the same digests.
    """
    encoder = ShardEncoder(store, payload.config, payload.task)
    result = ApplyResult(blocks=[])
    with open_deltas(store, payload.changes) as deltas:
        for change in payload.changes:
            old = {ref.codec: ref for ref in payload.before if ref.source == change.block.digest and ref.codec != EXACT}
            _apply_and_encode(store, encoder, change, deltas, old, result)
    steps = {step.target: step for step in payload.steps}
    result.patches += [over for found in in_order(lambda patch: list(_leaps(store, patch, steps)), [*result.patches]) for over in found]
    return result


def add_deltas(store: EngineStore, change: Change) -> tuple[ShardRef, str | None]:
    """One block alone, in no other codec; the deltas were admitted, and may be of other blocks as well.

    With the digest of what the outer optimizer carries on, where there is one.
    """
    with open_admitted(store, [change], shard_header(store, change.block.digest)) as deltas:
        ref, velocity, _ = _apply_block(store, change, deltas)
    return ref, velocity


def _apply_and_encode(
    store: EngineStore,
    encoder: ShardEncoder,
    change: Change,
    deltas: Mapping[str, DeltaFile],
    old: Mapping[str, EncodedRef],
    result: ApplyResult,
) -> None:
    """The new version in the codecs of the old one and in those that are wanted, and the steps from old to new. Packed exact it is made
    where that is wanted; else when somebody asks for it.
    """
    codecs = sorted({*old, *change.codecs})
    new, velocity, encodings = _apply_block(store, change, deltas, [codec for codec in codecs if parse_codec(codec)[0] in BITS])
    result.blocks.append(new)
    if velocity is not None:
        result.velocities[new.block] = velocity
    if (step := _delta_as_step(store, change, new)) is not None:
        result.patches.append(step)
    for codec in codecs:
        if codec in encodings:
            shard, patch = encodings.pop(codec).keep(store, new.digest, old.get(codec))
        else:
            shard, patch = encoder.stepped(new.digest, codec, old.get(codec))
        result.shards.append(shard)
        if patch is not None:
            result.patches.append(patch)


def _apply_block(
    store: EngineStore, change: Change, deltas: Mapping[str, DeltaFile], codecs: Sequence[str] = ()
) -> tuple[ShardRef, str | None, dict[str, Encoding]]:
    """The next version of a block, some rows at a time: of an embedding, memory would hold base, sum, and every delta in float32.

    With the digest of what the outer optimizer carries on; and in the codecs `int8` and `int4`, made of the rows while they are there, what is to
    be stored.
    """
    block = change.block
    header = shard_header(store, block.digest)
    opened = opened_change(store, change, header, deltas)
    dtypes = {name: "F32" if name in opened.names else tensor.dtype for name, tensor in header.tensors.items()}
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    encodings = {codec: Encoding(codec, {name: (DTYPES[dtype], shapes[name]) for name, dtype in dtypes.items()}) for codec in codecs}
    with (
        store.localised(block.digest) as path,
        old_velocity(store, change) as before,
        new_velocity(store, opened.outer, opened.shapes) as after,
        store.writer() as writer,
    ):

        def made(part: tuple[str, slice | None]) -> tuple[memoryview, memoryview | None]:
            name, rows = part
            with safe_open(path, framework="pt") as file:
                new, velocity = some_rows(file, name, rows), None
            if name in opened.names:  # else it is a buffer, which has no delta
                new, velocity = opened.changed(new.to(torch.float32), name, shapes[name], rows, before.some(name, rows))
            for encoding in encodings.values():
                encoding.put(name, rows, new)
            return as_bytes(new), as_bytes(velocity) if velocity is not None else None

        writer.write(pack_header([(name, dtype, shapes[name]) for name, dtype in dtypes.items()]))
        for new, velocity in in_order(made, ((name, rows) for name, shape in shapes.items() for rows in row_slices(shape))):
            writer.write(new)
            if after is not None and velocity is not None:
                after.write(velocity)
    ref = ShardRef(block=block.block, version=block.version + 1, codec=EXACT, digest=writer.digest, size=writer.size)
    return ref, after.digest if after is not None else None, encodings


def _delta_as_step(store: EngineStore, change: Change, new: ShardRef) -> PatchMade | None:
    """Whoever trained it, or fetches its delta, can add it as it was added here."""
    if len(change.terms) != 1 or change.outer is not None or change.beside is not None or change.terms[0].scale is not None:
        return None
    term = change.terms[0]
    size = store.size(term.digest)
    if size >= new.size:
        return None
    return PatchMade(kind="delta", target=new.digest, base=change.block.digest, digest=term.digest, size=size, weight=term.weight)


def _leaps(store: EngineStore, last: PatchMade, steps: Mapping[str, PatchMade]) -> Iterator[PatchMade]:
    """Single patches over the last two, three … steps in a row, of which the very last was made now: changes of several rounds are smaller
    together than one by one.
    """
    way = [last]
    while last.kind == "difference" and (step := steps.get(way[0].base)) is not None and step not in way:
        way.insert(0, step)
        with contextlib.ExitStack() as stack:
            try:
                paths = [stack.enter_context(store.localised(step.digest)) for step in way]
                digest, size = write_chunks(store, lossless.leap(paths, shard_header(store, last.target), BY_NUMPY))
            except (BlobMissing, BlobDamaged, PackedError):  # of a step that is lost: whoever asks for it has the whole shard
                return
        yield PatchMade(kind="difference", target=last.target, base=step.base, digest=digest, size=size)
