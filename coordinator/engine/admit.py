"""Measures a delta and judges it by its numbers; the structure was checked before it was taken."""

import math
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fedcybgd.coordinator.domain.admission import BlockNumbers, judge_numbers
from fedcybgd.coordinator.domain.band import BlockDelta
from fedcybgd.coordinator.domain.jobs.payloads import AdmitPayload, AdmitResult
from fedcybgd.coordinator.engine.changes import corrected
from fedcybgd.coordinator.engine.deltas import limit_of, open_delta
from fedcybgd.coordinator.engine.shards import shard_header
from fedcybgd.coordinator.engine.sketches import Sketcher
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.adapters import factors_of, is_factor, matrix_of
from fedcybgd.shared.contract.block_names import HEAD, of_labels
from fedcybgd.shared.contract.delta_layout import DeltaCodecError
from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.files.lossless import PackedError
from fedcybgd.shared.files.safetensors_header import Header
from fedcybgd.shared.tensors.codecs import CodecError
from fedcybgd.shared.tensors.delta_file import DeltaFile, row_slices, some_rows

MOST_PRODUCT = 1e32
"""Of two factors of an adapter: what they come to counts up to a million times, and float32 ends at 3.4e38. Honest ones stay below 1e4."""
OVERFLOWS = 1e74
"""Square of a norm from which on float32 numbers may add up to infinity (beyond 3.4e38): only then the sum is looked at."""


def admit(store: EngineStore, payload: AdmitPayload) -> AdmitResult:
    """Read the delta some rows at a time; memory holds a few MB."""
    numbers: dict[str, BlockNumbers] = {}
    deltas: dict[str, BlockDelta] = {}
    bases = {block.block: (block.digest, shard_header(store, block.digest)) for block in [*payload.blocks, *payload.corrected]}
    frozen, scale = {block.block for block in payload.corrected}, payload.corrections.scale if payload.corrections else 1.0
    try:
        with open_delta(store, payload.delta, _limit(bases, frozen)) as delta:
            for block, (digest, header) in bases.items():
                with store.localised(digest) as path:
                    measured = _Correction(delta, scale) if block in frozen else delta
                    numbers[block], deltas[block] = _measure(measured, path, header)
                    moved = _moved(delta, header, payload.labels) if block == HEAD and payload.labels else None
                    deltas[block] = deltas[block].model_copy(update={"correction": block in frozen, "moved": moved})
                    numbers[block].non_finite.extend(_overflowing(delta, path, header))
    # The bases are verified: what is wrong now is wrong with the delta's bytes, and the agent's fault.
    except (CodecError, DeltaCodecError) as error:
        return AdmitResult(rejected_because=f"codec: {error.message}")
    except (PackedError, HeaderError) as error:
        return AdmitResult(rejected_because=f"malformed: {error.message}")
    except (SafetensorError, ValueError, LookupError, OverflowError) as error:
        return AdmitResult(rejected_because=f"malformed: {error}")
    reason = judge_numbers(numbers, frozenset(payload.always), payload.rules)
    return AdmitResult(rejected_because=reason, deltas={block: found for block, found in deltas.items() if math.isfinite(found.norm)})


def _limit(bases: Mapping[str, tuple[str, Header]], frozen: Collection[str]) -> int:
    """Two factors have twice the numbers of their matrix at the most."""
    return limit_of([header for _, header in bases.values()] + [bases[block][1] for block in frozen])


class _Correction:
    """The corrections of a block that a delta has, multiplied out some rows at a time."""

    def __init__(self, delta: DeltaFile, scale: float) -> None:
        self._delta, self._scale = delta, scale

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(matrix_of(name) for name in self._delta.names if is_factor(name))

    def tensor(self, name: str, shape: tuple[int, ...], rows: slice | None = None) -> torch.Tensor:
        return corrected(self._delta, name, shape, rows, self._scale)


def _measure(delta: DeltaFile | _Correction, path: Path, header: Header) -> tuple[BlockNumbers, BlockDelta]:
    non_finite, squares, base_squares, size, sketcher = [], 0.0, 0.0, 0, Sketcher()
    for name, tensor in header.tensors.items():
        if name not in delta.names:
            continue
        finite, size = True, size + tensor.numel
        for rows in row_slices(tensor.shape):
            with safe_open(path, framework="pt") as base:
                old = some_rows(base, name, rows)
            change = delta.tensor(name, tensor.shape, rows)
            square, base_square = _square(change), _square(old)
            if not square + base_square < OVERFLOWS and not _finite(old, change):
                finite = False
            start = (rows.start if rows is not None else 0) * math.prod(tensor.shape[1:])
            sketcher.add(name, tensor.numel, start, change)
            squares += square
            base_squares += base_square
        if not finite:
            non_finite.append(name)
    norm, base_norm = math.sqrt(squares) if squares >= 0 else math.nan, math.sqrt(base_squares)
    return BlockNumbers(non_finite, norm, base_norm), BlockDelta(norm=norm, base_norm=base_norm, size=size, sketch=sketcher.packed())


def _moved(delta: DeltaFile, header: Header, labels: int) -> list[int] | None:
    """The labels whose rows of a head a delta moves; None where the head has no row for each."""
    name = of_labels({name: tensor.shape for name, tensor in header.tensors.items()}, labels)
    return delta.tensor(name, header.tensors[name].shape).any(1).nonzero().flatten().tolist() if name in delta.names else None


def _overflowing(delta: DeltaFile, path: Path, header: Header) -> list[str]:
    """The matrices whose adapters, once the delta was added to their factors, could come to what is no number: each factor alone may be one."""
    found = []
    for left in (name for name in header.tensors if is_factor(name) and name == factors_of(matrix_of(name))[0]):
        largest = []
        for name in factors_of(matrix_of(left)):
            with safe_open(path, framework="pt") as base:
                largest.append(float((base.get_tensor(name).float() + delta.tensor(name, header.tensors[name].shape)).abs().max()))
        rank = header.tensors[left].shape[1]
        if not rank * largest[0] * largest[1] < MOST_PRODUCT and all(map(math.isfinite, largest)):
            found.append(f"{matrix_of(left)} (its factors)")
    return found


def _finite(base: torch.Tensor, delta: torch.Tensor) -> bool:
    return bool(torch.isfinite(base.float() + delta.float()).all())


def _square(tensor: torch.Tensor) -> float:
    # In float64, where the square of no float32 number is infinite; NaN and infinity come through.
    return float(torch.linalg.vector_norm(tensor.float(), dtype=torch.float64)) ** 2
