"""Measures a delta and judges it by its numbers; the structure was checked before it was taken."""

import math

import torch
from safetensors import safe_open

from coordinator.domain.admission import BlockNumbers, judge_numbers
from coordinator.domain.job import AdmitPayload, AdmitResult
from coordinator.storage import BlobStore

OVERFLOWS = 1e74
"""Square of a norm from which on float32 numbers may add up to infinity (beyond 3.4e38): only then the sum is looked at."""


def admit(store: BlobStore, payload: AdmitPayload) -> AdmitResult:
    """Read the delta tensor by tensor; memory holds two tensors at a time."""
    numbers: dict[str, BlockNumbers] = {}
    with safe_open(store.path(payload.delta), framework="pt") as delta:
        names = set(delta.keys())
        for block in payload.blocks:
            non_finite, squares, base_squares = [], 0.0, 0.0
            with safe_open(store.path(block.digest), framework="pt") as base:
                for name in base.keys():  # noqa: SIM118 - not a dict
                    if name in names:
                        square, base_square = _square(delta.get_tensor(name)), _square(base.get_tensor(name))
                        if not square + base_square < OVERFLOWS and not _finite(base.get_tensor(name), delta.get_tensor(name)):
                            non_finite.append(name)
                        squares += square
                        base_squares += base_square
            numbers[block.block] = BlockNumbers(non_finite, math.sqrt(squares) if squares >= 0 else math.nan, math.sqrt(base_squares))
    reason = judge_numbers(numbers, frozenset(payload.always), payload.rules)
    norms = {block: found.norm for block, found in numbers.items() if math.isfinite(found.norm)}
    return AdmitResult(rejected_because=reason, norms=norms)


def _finite(base: torch.Tensor, delta: torch.Tensor) -> bool:
    return bool(torch.isfinite(base.float() + delta.float()).all())


def _square(tensor: torch.Tensor) -> float:
    # The norm of float32 is summed pairwise and exact enough here; NaN and infinity come through.
    return float(torch.linalg.vector_norm(tensor.float())) ** 2
