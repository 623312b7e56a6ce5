"""The one place where the deltas of agents become a change of a block."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from fedcybgd.coordinator.domain.aggregate import Aggregate as Named
from fedcybgd.shared.tensors.deltas import add_decoded


class Aggregate(Protocol):
    """Deterministic to the bit, whatever the process and however many rows it is asked for at once."""

    def changed(self, base: Tensor, deltas: Sequence[tuple[Tensor, float]]) -> Tensor:
        """The new values of some rows of a tensor, float32: `deltas` are decoded, with their weights, in the order of seats."""
        ...


class Sum:
    """base + Σ weight · delta, one after another."""

    def changed(self, base: Tensor, deltas: Sequence[tuple[Tensor, float]]) -> Tensor:
        return add_decoded(base, deltas)


AGGREGATES: Mapping[Named, Aggregate] = {"sum": Sum()}
