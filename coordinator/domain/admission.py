"""Judges a delta: first its structure from the header alone, then its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.shared.contract.adapters import is_factor
from fedcybgd.shared.contract.delta_rows import ROWS, layout_by_rows
from fedcybgd.shared.contract.words import DeltaCodec
from fedcybgd.shared.files.safetensors_header import Header


class DeltaRefused(Invalid):
    """A delta that is not one of this assignment; nothing was kept of it and the lease goes on."""

    code = "delta_refused"


OF_BLOCK = "times its block's"
"""Of a rejection by `max_relative_norm`, where the band's speak of other deltas"""


@dataclass(frozen=True)
class BlockNumbers:
    """What was measured on the delta of one block."""

    non_finite: list[str]
    """Names of tensors with NaN or infinity."""
    norm: float
    """Euclidean norm of the delta."""
    base_norm: float
    """Euclidean norm of the block as it was sent."""


def check_structure(expected: Mapping[str, tuple[int, ...]], header: Header, codec: DeltaCodec = "float32") -> None:
    """Compare a delta's header with the tensors (name → shape) that the assignment trains, in the codec that was asked for.

    A matrix may come by rows, but no factor; which ones is for the engine to look at. Raises `DeltaRefused` on a difference.
    """
    if (found := header.metadata.get("codec", "float32")) != codec:
        raise DeltaRefused(f"the delta is in codec {found[:40]!r}, this run asks for {codec}", codec=codec)
    rows = {
        name: index.shape[0] for name, shape in expected.items()
        if len(shape) == 2 and not is_factor(name) and (index := header.tensors.get(name + ROWS)) is not None and len(index.shape) == 1
    }  # fmt: skip
    for name, count in rows.items():
        if not 1 <= count <= expected[name][0]:
            raise DeltaRefused(f"{name} comes with {count} rows, must be 1 to {expected[name][0]}", tensor=name)
    layout = layout_by_rows(expected, codec, rows)
    missing = sorted(set(layout) - set(header.tensors))
    foreign = sorted(set(header.tensors) - set(layout))
    if missing or foreign:
        raise DeltaRefused(
            f"the delta must hold exactly the tensors of the trained blocks; missing: {_some(missing)}; foreign: {_some(foreign)}",
            missing=missing[:20], foreign=foreign[:20],
        )  # fmt: skip
    for name, (dtype, shape) in layout.items():
        tensor = header.tensors[name]
        if tensor.shape != shape:
            raise DeltaRefused(f"{name} has shape {list(tensor.shape)}, must be {list(shape)}", tensor=name)
        if tensor.dtype != dtype:
            raise DeltaRefused(f"{name} is {tensor.dtype}, must be {dtype}", tensor=name)


def judge_numbers(numbers: Mapping[str, BlockNumbers], always: frozenset[str], rules: AdmissionSection) -> str | None:
    """None for a delta to accept, else the reason to reject it: `non_finite …` or `norm …`.

    The norm is no matter for blocks that are trained along: a fresh head moves by more than it weighs.
    """
    for block, found in numbers.items():
        if found.non_finite:
            return f"non_finite: {_some(found.non_finite)} in block {block}"
    for block, found in numbers.items():
        limit = rules.max_relative_norm
        if limit is not None and block not in always and not found.norm <= limit * found.base_norm:  # NaN is no number to accept
            return f"norm: the delta of {block} has norm {found.norm:.4g}, more than {limit:g} {OF_BLOCK} {found.base_norm:.4g}"
    return None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
