"""Measures a delta and judges it by its numbers; the structure was checked before it was taken."""

import math

import torch
from safetensors import safe_open

from coordinator.domain.admission import BlockNumbers, judge_numbers
from coordinator.domain.job import AdmitPayload, AdmitResult
from coordinator.storage import BlobStore


def admit(store: BlobStore, payload: AdmitPayload) -> AdmitResult:
    """Read the delta tensor by tensor; memory holds two tensors at a time."""
    numbers: dict[str, BlockNumbers] = {}
    with safe_open(store.path(payload.delta), framework="pt") as delta:
        names = set(delta.keys())
        for block in payload.blocks:
            non_finite, squares, base_squares = [], 0.0, 0.0
            with safe_open(store.path(block.digest), framework="pt") as base:
                for name in base.keys():  # noqa: SIM118 - not a dict
                    base_squares += _square(base.get_tensor(name)) if name in names else 0.0
                    if name in names:
                        square = _square(delta.get_tensor(name))
                        if not math.isfinite(square) and not bool(torch.isfinite(delta.get_tensor(name)).all()):
                            non_finite.append(name)
                        squares += square
            numbers[block.block] = BlockNumbers(non_finite, math.sqrt(squares) if squares >= 0 else math.nan, math.sqrt(base_squares))
    reason = judge_numbers(numbers, frozenset(payload.always), payload.rules)
    norms = {block: found.norm for block, found in numbers.items() if math.isfinite(found.norm)}
    return AdmitResult(rejected_because=reason, norms=norms)


def _square(tensor: torch.Tensor) -> float:
    # The norm of float32 is summed pairwise and exact enough here; NaN and infinity come through.
    return float(torch.linalg.vector_norm(tensor.float())) ** 2
