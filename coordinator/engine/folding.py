"""What a mean of adapters leaves out of the mean of what they do, folded into the matrices beside which they are (FedEx-LoRA, arXiv 2410.09432).

Every product and sum is of single numbers, one after another in float32: the bits are the same on every machine, which those of a product of
matrices are not.
"""

from collections.abc import Mapping
from math import fsum

import torch
from safetensors import safe_open
from torch import Tensor

from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.adapters import factors_of
from fedcybgd.shared.files.safetensors_header import Header
from fedcybgd.shared.models.adapters import product
from fedcybgd.shared.tensors.delta_file import DeltaFile
from fedcybgd.shared.tensors.deltas import add_decoded


class Folding:
    """A change of a block of layers by deltas of the adapters beside its matrices; as `OpenedChange` in how it is asked."""

    outer = None

    def __init__(self, store: EngineStore, change: Change, header: Header, deltas: Mapping[str, DeltaFile]) -> None:
        assert change.beside is not None
        self._scale = change.beside.scale
        self._members = [(deltas[term.digest], term.weight) for term in change.terms]
        self._left_over = 1 - fsum(term.weight for term in change.terms)
        self._factors: dict[str, Tensor] = {}
        with store.localised(change.beside.block.digest) as path, safe_open(path, framework="pt") as file:
            known = set(file.keys())
            self.names = frozenset(name for name in header.tensors if factors_of(name)[0] in known)
            for name in self.names:
                self._factors |= {factor: file.get_tensor(factor).float() for factor in factors_of(name)}
        self.shapes = [(name, "F32", tensor.shape) for name, tensor in header.tensors.items() if name in self.names]

    def changed(
        self, base: Tensor, name: str, shape: tuple[int, ...], rows: slice | None, velocity: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """base + scale · (Σ weight · what each member's adapter does - what their mean does), of some rows."""
        assert len(shape) == 2
        assert velocity is None
        old = [self._factors[factor] for factor in factors_of(name)]
        moved = [
            [(file.tensor(factor, tuple(tensor.shape), None), weight) for file, weight in self._members]
            for factor, tensor in zip(factors_of(name), old, strict=True)
        ]
        total = torch.zeros_like(base)
        for left, right in zip(*moved, strict=True):
            total = total + product(old[0] + left[0], old[1] + right[0], rows) * left[1]
        if self._left_over:
            total = total + product(old[0], old[1], rows) * self._left_over
        mean = [add_decoded(tensor, deltas) for tensor, deltas in zip(old, moved, strict=True)]
        total = total - product(mean[0], mean[1], rows)
        return base + total * self._scale, None
