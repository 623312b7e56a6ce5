"""Applies accepted deltas to the blocks of a round: version v becomes v + 1, in every codec that agents will ask for."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import safe_open

from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, ApplyResult, Change, EncodedRef, PatchMade
from fedcybgd.coordinator.engine.aggregate import AGGREGATES
from fedcybgd.coordinator.engine.deltas import limit_of, open_delta
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.engine.shards import shard_header
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.files.safetensors_header import MAX_NUMBER, Header, copy_tensor, pack_header
from fedcybgd.shared.tensors.delta_file import DeltaFile, row_slices, some_rows


def apply(store: EngineStore, payload: ApplyPayload) -> ApplyResult:
    """block ← block + what the aggregate makes of the deltas, in float32 (w_b ← w_b + delta_b in the paper).

    A trained block is float32 from its first delta on: a bf16 weight would lose most of a change of fine-tuning size.
    Deterministic to the bit, so that a repeat after a crash stores the same digests.
    """
    encoder = ShardEncoder(store, payload.config, payload.task)
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


def add_deltas(store: EngineStore, change: Change) -> ShardRef:
    """One block alone, in no other codec; the deltas were admitted, and may be of other blocks as well."""
    with _opened(store, [change], MAX_NUMBER) as deltas:
        return _apply_block(store, change, deltas)


@contextlib.contextmanager
def _opened(store: EngineStore, changes: Sequence[Change], limit: int | None = None) -> Iterator[Mapping[str, DeltaFile]]:
    digests = dict.fromkeys(term.digest for change in changes for term in change.terms)
    limit = limit or limit_of(shard_header(store, change.block.digest) for change in changes)
    with contextlib.ExitStack() as stack:
        yield {digest: stack.enter_context(open_delta(store, digest, limit)) for digest in digests}


def _apply_block(store: EngineStore, change: Change, deltas: Mapping[str, DeltaFile]) -> ShardRef:
    """The next version of a block, some rows at a time: of an embedding, memory would hold base, sum, and every delta in float32."""
    block, aggregate = change.block, AGGREGATES[change.aggregate]
    header = shard_header(store, block.digest)
    files = [deltas[term.digest] for term in change.terms]
    weights = aggregate.weigh([term.weight for term in change.terms], _rows(header, files))
    all_terms = [_Weighed(file, weight, term.rows) for file, weight, term in zip(files, weights, change.terms, strict=True)]
    terms = {name: [term for term in all_terms if name in term.file.names] for name in header.tensors}
    by_label = _by_label(header, len(change.terms[0].rows))
    with store.localised(block.digest) as path, store.writer() as writer:
        writer.write(pack_header([(n, "F32" if terms[n] else tensor.dtype, tensor.shape) for n, tensor in header.tensors.items()]))
        for name, tensor in header.tensors.items():
            if not terms[name]:  # a buffer: it has no delta
                with path.open("rb") as plain:
                    for chunk in copy_tensor(plain, header, name):
                        writer.write(chunk)
                continue
            for rows in row_slices(tensor.shape):
                with safe_open(path, framework="pt") as file:
                    base = some_rows(file, name, rows).to(torch.float32)
                parts = [term.part(name, tensor.shape, rows, name in by_label) for term in terms[name]]
                new = aggregate.changed(base, parts)
                writer.write(new.contiguous().flatten().view(torch.uint8).numpy().data)
    return ShardRef(block=block.block, version=block.version + 1, codec=EXACT, digest=writer.digest, size=writer.size)


@dataclass(frozen=True)
class _Weighed:
    """A delta and what it counts for: all of it alike, or each label's row of a head by itself."""

    file: DeltaFile
    weight: float
    rows: Sequence[float]

    def part(self, name: str, shape: tuple[int, ...], rows: slice | None, by_label: bool) -> tuple[torch.Tensor, float]:
        """Some rows of a tensor, and the weight that is left to give them."""
        found = self.file.tensor(name, shape, rows)
        if not by_label:
            return found, self.weight
        weights = torch.tensor(self.rows, dtype=torch.float32)[rows or slice(None)]
        return found * weights.view(-1, *[1] * (found.ndim - 1)), 1.0


def _by_label(header: Header, labels: int) -> frozenset[str]:
    """The tensors of a head that have a row for each label; none where another of its layers has as many rows by chance."""
    if not labels or any(tensor.shape == (labels, labels) for tensor in header.tensors.values()):
        return frozenset()
    return frozenset(name for name, tensor in header.tensors.items() if tensor.shape and tensor.shape[0] == labels)


def _rows(header: Header, files: Sequence[DeltaFile]) -> Iterator[list[torch.Tensor]]:
    """All that several deltas have in common, some rows at a time."""
    for name, tensor in header.tensors.items():
        if all(name in file.names for file in files):
            for rows in row_slices(tensor.shape):
                yield [file.tensor(name, tensor.shape, rows) for file in files]


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
        elif shard.codec == EXACT and len(change.terms) == 1 and store.size(change.terms[0].digest) < shard.packed.size:
            # Whoever trained it, or fetches its delta, can add it as it was added here.
            term = change.terms[0]
            size = store.size(term.digest)
            patches.append(
                PatchMade(kind="delta", target=new.digest, base=change.block.digest, digest=term.digest, size=size, weight=term.weight)
            )
    return shards, patches
