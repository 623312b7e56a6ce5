"""Changes of a block, opened: their deltas are read and added some rows at a time."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.coordinator.engine.aggregate import AGGREGATES
from fedcybgd.coordinator.engine.deltas import limit_of, open_delta
from fedcybgd.coordinator.engine.folding import Folding
from fedcybgd.coordinator.engine.outer import stepped
from fedcybgd.coordinator.engine.shards import shard_header
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.adapters import factors_of
from fedcybgd.shared.files.safetensors_header import MAX_NUMBER, Header
from fedcybgd.shared.models.adapters import product
from fedcybgd.shared.tensors.delta_file import DeltaFile, row_slices


@contextlib.contextmanager
def open_deltas(store: EngineStore, changes: Sequence[Change]) -> Iterator[Mapping[str, DeltaFile]]:
    """The deltas of changes by their digests, unpacked aside: no more bytes of each than its blocks allow, two factors twice what their
    matrix does.
    """
    of = [change for change in changes for _ in range(2 if any(term.scale is not None for term in change.terms) else 1)]
    limit = limit_of(shard_header(store, change.block.digest) for change in of)
    with contextlib.ExitStack() as stack:
        yield {digest: stack.enter_context(open_delta(store, digest, limit)) for digest in _digests(changes)}


@contextlib.contextmanager
def open_admitted(store: EngineStore, changes: Sequence[Change], header: Header) -> Iterator[Mapping[str, DeltaFile]]:
    """The deltas of changes of one block with this header, which were admitted: what they have of other blocks is not unpacked."""
    names = frozenset([*header.tensors, *(factor for name in header.tensors for factor in factors_of(name))])
    with contextlib.ExitStack() as stack:
        yield {digest: stack.enter_context(open_delta(store, digest, MAX_NUMBER, names)) for digest in _digests(changes)}


def _digests(changes: Sequence[Change]) -> list[str]:
    return list(dict.fromkeys(term.digest for change in changes for term in change.terms))


def opened_change(store: EngineStore, change: Change, header: Header, deltas: Mapping[str, DeltaFile]) -> "OpenedChange | Folding":
    return OpenedChange(change, header, deltas) if change.beside is None else Folding(store, change, header, deltas)


class OpenedChange:
    """A change of a block with this header, whose deltas are open."""

    def __init__(self, change: Change, header: Header, deltas: Mapping[str, DeltaFile]) -> None:
        self._aggregate = AGGREGATES[change.aggregate]
        files = [deltas[term.digest] for term in change.terms]
        weights = self._aggregate.weigh([term.weight for term in change.terms], _rows(header, files))
        self._terms = [
            _Weighed(file, weight, term.rows, term.scale) for file, weight, term in zip(files, weights, change.terms, strict=True)
        ]
        self._by_label = _by_label(header, len(change.terms[0].rows))
        self.outer = change.outer
        self.names = frozenset(name for name in header.tensors if any(term.has(name) for term in self._terms))
        """the tensors that it changes"""
        self.shapes = [(name, "F32", tensor.shape) for name, tensor in header.tensors.items() if name in self.names]

    def changed(
        self, base: Tensor, name: str, shape: tuple[int, ...], rows: slice | None, velocity: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The new values of some rows of a tensor of this shape, float32, and the new velocity, where there is an outer optimizer."""
        by_label = name in self._by_label
        parts = [term.part(name, shape, rows, by_label) for term in self._terms if term.has(name)]
        if self.outer is None:
            return self._aggregate.changed(base, parts), None
        return stepped(self.outer, base, self._aggregate.changed(torch.zeros_like(base), parts), velocity)


@dataclass(frozen=True)
class _Weighed:
    """A delta and what it counts for: all of it alike, or each label's row of a head by itself."""

    file: DeltaFile
    weight: float
    rows: Sequence[float]
    scale: float | None
    """where it has corrections of the block"""

    def has(self, name: str) -> bool:
        """Whether it changes this tensor of the block."""
        return (name if self.scale is None else factors_of(name)[0]) in self.file.names

    def part(self, name: str, shape: tuple[int, ...], rows: slice | None, by_label: bool) -> tuple[Tensor, float]:
        """Some rows of a tensor, and the weight that is left to give them."""
        if self.scale is not None:
            return corrected(self.file, name, shape, rows, self.scale), self.weight
        found = self.file.tensor(name, shape, rows)
        if not by_label:
            return found, self.weight
        weights = torch.tensor(self.rows, dtype=torch.float32)[rows or slice(None)]
        return found * weights.view(-1, *[1] * (found.ndim - 1)), 1.0


def corrected(file: DeltaFile, name: str, shape: tuple[int, ...], rows: slice | None, scale: float) -> Tensor:
    """What a correction adds to some rows of the matrix of this name and shape."""
    (left, right), (height, width), rank = factors_of(name), shape, file.rows_of(factors_of(name)[1])
    return product(file.tensor(left, (height, rank), rows), file.tensor(right, (rank, width))) * scale


def _by_label(header: Header, labels: int) -> frozenset[str]:
    """The tensors of a head that have a row for each label; none where another of its layers has as many rows by chance."""
    if not labels or any(tensor.shape == (labels, labels) for tensor in header.tensors.values()):
        return frozenset()
    return frozenset(name for name, tensor in header.tensors.items() if tensor.shape and tensor.shape[0] == labels)


def _rows(header: Header, files: Sequence[DeltaFile]) -> Iterator[list[Tensor]]:
    """All that several deltas have in common, some rows at a time."""
    for name, tensor in header.tensors.items():
        if all(name in file.names for file in files):
            for rows in row_slices(tensor.shape):
                yield [file.tensor(name, tensor.shape, rows) for file in files]
