"""Applies accepted deltas to the blocks of a round: version v becomes v + 1."""

from collections.abc import Sequence
from functools import partial

import torch
from safetensors import safe_open

from coordinator.domain.job import ApplyPayload, ApplyResult
from coordinator.engine.shards import Piece, from_file, from_tensor, shard_header, write_shard
from coordinator.storage import BlobStore
from shared.protocol import ShardRef


def apply(store: BlobStore, payload: ApplyPayload) -> ApplyResult:
    """block ← block + Σ weight · delta, in float32 (w_b ← w_b + delta_b in the paper).

    A trained block is float32 from its first delta on: a bf16 weight would lose most of a change of fine-tuning size.
    Deterministic to the bit, so that a repeat after a crash stores the same digest.
    """
    return ApplyResult(blocks=[_apply_block(store, block, payload.deltas, payload.weights) for block in payload.blocks])


def _apply_block(store: BlobStore, block: ShardRef, deltas: Sequence[str], weights: Sequence[float]) -> ShardRef:
    path, header = shard_header(store, block.digest)
    changes = {digest: set(shard_header(store, digest)[1].tensors) for digest in deltas}
    pieces: list[Piece] = []
    for name, tensor in header.tensors.items():
        terms = [(digest, weight) for digest, weight in zip(deltas, weights, strict=True) if name in changes[digest]]
        if terms:
            pieces.append(from_tensor(name, tensor.shape, torch.float32, partial(_sum, store, block.digest, name, terms)))
        else:  # a buffer: it has no delta
            pieces.append(from_file(path, header, tensor, name))
    digest, size = write_shard(store, pieces)
    return ShardRef(block=block.block, version=block.version + 1, codec="exact", digest=digest, size=size)


def _sum(store: BlobStore, base: str, name: str, terms: Sequence[tuple[str, float]]) -> torch.Tensor:
    result = _tensor(store, base, name).to(torch.float32, copy=True)
    for digest, weight in terms:
        result.add_(_tensor(store, digest, name), alpha=weight)
    return result


def _tensor(store: BlobStore, digest: str, name: str) -> torch.Tensor:
    with safe_open(store.path(digest), framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
