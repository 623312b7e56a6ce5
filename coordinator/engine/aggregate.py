"""The one place where the deltas of agents become a change of a block."""

from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from typing import Protocol

import torch
from torch import Tensor

from fedcybgd.coordinator.domain.aggregate import Aggregate as Named
from fedcybgd.coordinator.domain.aggregate import trimmed
from fedcybgd.shared.tensors.deltas import add_decoded

ITERATIONS = 200
DIGITS = 6
"""Of the weights that come of iterations: what another processor computes differently lies below."""


class Aggregate(Protocol):
    """Deterministic to the bit, whatever the process and however many rows it is asked for at once."""

    def weigh(self, weights: Sequence[float], rows: Iterable[Sequence[Tensor]]) -> list[float]:
        """The weights that `changed` is given. `rows` are all numbers of the block, some at a time: of each delta, in the order of seats.
        Who needs them reads them once more than `changed` does.
        """
        ...

    def changed(self, base: Tensor, deltas: Sequence[tuple[Tensor, float]]) -> Tensor:
        """The new values of some rows of a tensor, float32: `deltas` are decoded, with their weights, in the order of seats."""
        ...


class Sum:
    """base + Σ weight · delta, one after another."""

    def weigh(self, weights: Sequence[float], rows: Iterable[Sequence[Tensor]]) -> list[float]:  # noqa: ARG002
        return list(weights)

    def changed(self, base: Tensor, deltas: Sequence[tuple[Tensor, float]]) -> Tensor:
        return add_decoded(base, deltas)


class MiddleMean(Sum):
    """base + Σ weight · mean of the middle ones, number by number: without a quarter at either end, or (`median`) of the innermost alone."""

    def __init__(self, median: bool) -> None:
        self._median = median

    def changed(self, base: Tensor, deltas: Sequence[tuple[Tensor, float]]) -> Tensor:
        ordered = torch.stack([delta for delta, _ in deltas]).sort(dim=0).values
        out = (len(deltas) - 1) // 2 if self._median else min(trimmed(len(deltas)), (len(deltas) - 1) // 2)
        middle = ordered[out : len(deltas) - out]
        mean = add_decoded(torch.zeros_like(base), [(values, 1 / len(middle)) for values in middle])
        return add_decoded(base, [(mean, fsum(weight for _, weight in deltas))])


class GeometricMedian(Sum):
    """base + Σ weight' · delta, with the weights that make the point of least distance of them (Weiszfeld's iteration).

    The point is always a sum of the deltas, so all that is needed of them are their products with each other.
    """

    def weigh(self, weights: Sequence[float], rows: Iterable[Sequence[Tensor]]) -> list[float]:
        products = torch.zeros(len(weights), len(weights), dtype=torch.float64)
        for deltas in rows:
            stacked = torch.stack([delta.flatten().double() for delta in deltas])
            products += stacked @ stacked.T
        given = torch.tensor(weights, dtype=torch.float64)
        shares = given / given.sum()
        least = 1e-12 * products.diagonal().max().clamp(min=1e-300)
        for _ in range(ITERATIONS):
            squares = products.diagonal() - 2 * products @ shares + shares @ products @ shares
            pulls = given / squares.clamp(min=least).sqrt()
            shares = pulls / pulls.sum()
        total = float(given.sum())
        return [total * round(share, DIGITS) for share in shares.tolist()]


AGGREGATES: Mapping[Named, Aggregate] = {
    "sum": Sum(), "trimmed_mean": MiddleMean(median=False), "median": MiddleMean(median=True), "geometric_median": GeometricMedian(),
}  # fmt: skip
