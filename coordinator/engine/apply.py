"""Applies accepted deltas to the blocks of a round: version v becomes v + 1, in every codec that agents will ask for."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from fedcybgd.coordinator.domain.job import ApplyPayload, ApplyResult, Change, EncodedRef, PatchMade
from fedcybgd.coordinator.engine.deltas import limit_of, open_delta
from fedcybgd.coordinator.engine.encode import Encoder
from fedcybgd.coordinator.engine.shards import Piece, from_file, shard_header, write_shard
from fedcybgd.coordinator.storage import BlobStore
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.files.safetensors_header import MAX_NUMBER
from fedcybgd.shared.tensors.delta_file import DeltaFile, row_slices, some_rows
from fedcybgd.shared.tensors.deltas import add_decoded


def apply(store: BlobStore, payload: ApplyPayload) -> ApplyResult:
    """block ← block + Σ weight · delta, in float32 (w_b ← w_b + delta_b in the paper).

    A trained block is float32 from its first delta on: a bf16 weight would lose most of a change of fine-tuning size.
    Deterministic to the bit, so that a repeat after a crash stores the same digests.
    """
    encoder = Encoder(store, payload.config, payload.task)
    result = ApplyResult(blocks=[])
    with _opened(store, payload.changes) as deltas:
        for change in payload.changes:
            new = _apply_block(store, change, deltas)
            result.blocks.append(new)
            old = [ref for ref in payload.before if ref.source == change.block.digest]
            shards, patches = _encode(store, encoder, change, new, old)
            result.shards += shards
            result.patches += patches
    return result


def add_deltas(store: BlobStore, change: Change) -> ShardRef:
    """One block alone, in no other codec; the deltas were admitted, and may be of other blocks as well."""
    with _opened(store, [change], MAX_NUMBER) as deltas:
        return _apply_block(store, change, deltas)


@contextlib.contextmanager
def _opened(store: BlobStore, changes: Sequence[Change], limit: int | None = None) -> Iterator[Mapping[str, DeltaFile]]:
    digests = dict.fromkeys(term.digest for change in changes for term in change.terms)
    limit = limit or limit_of(shard_header(store, change.block.digest)[1] for change in changes)
    with contextlib.ExitStack() as stack:
        yield {digest: stack.enter_context(open_delta(store, digest, limit)) for digest in digests}


def _apply_block(store: BlobStore, change: Change, deltas: Mapping[str, DeltaFile]) -> ShardRef:
    block = change.block
    path, header = shard_header(store, block.digest)
    pieces: list[Piece] = []
    for name, tensor in header.tensors.items():
        terms = [(deltas[term.digest], term.weight) for term in change.terms if name in deltas[term.digest].names]
        if terms:
            pieces.append(Piece(name, "F32", tensor.shape, partial(_sum, path, name, tensor.shape, terms)))
        else:  # a buffer: it has no delta
            pieces.append(from_file(path, header, tensor, name))
    digest, size = write_shard(store, pieces)
    return ShardRef(block=block.block, version=block.version + 1, codec="exact", digest=digest, size=size)


def _sum(path: Path, name: str, shape: tuple[int, ...], terms: Sequence[tuple[DeltaFile, float]]) -> Iterator[memoryview]:
    """The new tensor's bytes, some rows at a time: of an embedding, memory would hold base, sum, and every term in float32."""
    for rows in row_slices(shape):
        with safe_open(path, framework="pt") as file:
            base = some_rows(file, name, rows).to(torch.float32)
        new = add_decoded(base, [(delta.tensor(name, shape, rows), weight) for delta, weight in terms])
        yield new.contiguous().flatten().view(torch.uint8).numpy().data


def _encode(
    store: BlobStore, encoder: Encoder, change: Change, new: ShardRef, old: Sequence[EncodedRef]
) -> tuple[list[EncodedRef], list[PatchMade]]:
    """The new version in the codecs of the old one and in those that are wanted, and the steps from old to new."""
    before = {ref.codec: ref for ref in old}
    shards = [encoder.encode(new.digest, codec) for codec in sorted({*before, *change.codecs})]
    patches: list[PatchMade] = []
    for shard in shards:
        if shard.codec != "exact" and shard.codec in before and (patch := encoder.difference(before[shard.codec], shard)):
            patches.append(patch)
        elif shard.codec == "exact" and len(change.terms) == 1 and store.size(change.terms[0].digest) < shard.packed.size:
            # Whoever trained it, or fetches its delta, can add it as it was added here.
            term = change.terms[0]
            size = store.size(term.digest)
            patches.append(
                PatchMade(kind="delta", target=new.digest, base=change.block.digest, digest=term.digest, size=size, weight=term.weight)
            )
    return shards, patches
