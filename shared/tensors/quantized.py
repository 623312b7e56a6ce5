"""Holds a tensor in 8 or 4 bits a value, in groups of 64 along its last dimension.

int8 is symmetric: `code * scale`, code in -127..127. int4 is affine: `code * scale + offset`, code in 0..15, two codes a byte. Scales and
offsets are bfloat16 and always finite, scales always positive. Every step is elementwise or a minimum or maximum over one
group, so the same tensor gives the same bytes in every process, whatever its number of threads.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.tensors import dense_on_card

GROUP = 64
"""Values that share one scale."""
LARGEST = 1e38
"""Larger magnitudes are refused: the code's rounding could carry them past what float32 holds."""
_SMALLEST_SCALE = 2.0**-100
"""Groups that need a finer scale are as good as constant; finer scales have no float32 reciprocal that could be trusted."""
_RANGE = 0.95
"""The part of a group's range that the 16 levels of int4 span: near the least squared error for normal weights in groups of 64."""
_CHUNK = 1 << 18  # values at a time while quantizing: what they need fits a core's cache


class CodecError(FedError):
    code = "codec_invalid"


class TensorSource(Protocol):
    """What `safetensors.safe_open` gives, or a dictionary dressed up as it."""

    def get_tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class QuantizedTensor:
    """`codes`: int8 of the original's shape, or uint8 with the last dimension halved (even index in the low four bits).

    `scales` and `offsets`: bfloat16 (..., ceil(n / GROUP)); offsets are None where bits is 8.
    """

    codes: Tensor
    scales: Tensor
    offsets: Tensor | None
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the original."""
        *outer, last = self.codes.shape
        return (*outer, last if self.bits == 8 else 2 * last)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def to(self, device: torch.device | str) -> "QuantizedTensor":
        offsets = None if self.offsets is None else self.offsets.to(device)
        return QuantizedTensor(self.codes.to(device), self.scales.to(device), offsets, self.bits)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense tensor of the original's shape, in float32 or bfloat16. The same bits each time on one kind of device."""
        if (
            dtype == torch.bfloat16
            and self.codes.is_cuda
            and (made := dense_on_card.dense(self.codes, self.scales, self.offsets)) is not None
        ):
            return made
        codes = self.codes if self.bits == 8 else _unpack(self.codes)
        # A CPU computes in float32 and converts once, which takes two thirds of the time; others have the bandwidth to spare, not the memory.
        values = codes.to(torch.float32 if codes.device.type == "cpu" else dtype)
        full = values.shape[-1] // GROUP * GROUP
        _rescale(_groups(values[..., :full]), self.scales, self.offsets, slice(0, full // GROUP))
        if full < values.shape[-1]:
            _rescale(values[..., full:].unsqueeze(-2), self.scales, self.offsets, slice(full // GROUP, None))
        return values.to(dtype)

    def rows(self, indices: Tensor) -> Tensor:
        """(...) int64 → (..., n) float32: these rows of a two-dimensional tensor."""
        offsets = None if self.offsets is None else self.offsets[indices]
        return QuantizedTensor(self.codes[indices], self.scales[indices], offsets, self.bits).dequantize()


def _groups(values: Tensor) -> Tensor:
    """(..., n) → (..., n / GROUP, GROUP), a view."""
    return values.view(*values.shape[:-1], values.shape[-1] // GROUP, GROUP)


def _rescale(values: Tensor, scales: Tensor, offsets: Tensor | None, groups: slice) -> None:
    values.mul_(scales[..., groups].unsqueeze(-1).to(values.dtype))
    if offsets is not None:
        values.add_(offsets[..., groups].unsqueeze(-1).to(values.dtype))


def _unpack(codes: Tensor) -> Tensor:
    """(..., n / 2) uint8 → (..., n) uint8 in 0..15, through 16-bit words: contiguous, and so several times faster than slices."""
    words = codes.to(torch.int16)
    return words.bitwise_or_(words << 4).bitwise_and_(0x0F0F).view(torch.uint8)


def _pack(codes: Tensor) -> Tensor:
    """The inverse of `_unpack`."""
    words = codes.view(torch.int16)
    return words.bitwise_or(words >> 4).bitwise_and_(0xFF).to(torch.uint8)


def quantize(tensor: Tensor, bits: int) -> QuantizedTensor:
    """Quantize a floating-point tensor of two or more dimensions to 8 or 4 bits.

    Raises `CodecError` for other tensors, for values that are not finite or exceed 1e38, and for 4 bits of an odd last dimension.
    """
    if bits not in (8, 4):
        raise CodecError(f"there is no code of {bits} bits; known are 8 and 4")
    if tensor.dim() < 2 or not tensor.is_floating_point():
        raise CodecError(f"only floating-point tensors of two or more dimensions can be quantized, not {tensor.dtype} {list(tensor.shape)}")
    n = tensor.shape[-1]
    if bits == 4 and n % 2:
        raise CodecError(f"a tensor {list(tensor.shape)} cannot be held in 4 bits: its last dimension is odd")
    groups = math.ceil(n / GROUP)
    rows = tensor.detach().reshape(-1, n) if tensor.numel() else tensor.detach().new_empty(math.prod(tensor.shape[:-1]), n)
    codes = torch.empty((rows.shape[0], n if bits == 8 else n // 2), dtype=torch.int8 if bits == 8 else torch.uint8, device=tensor.device)
    scales = torch.empty((rows.shape[0], groups), dtype=torch.bfloat16, device=tensor.device)
    offsets = torch.empty_like(scales) if bits == 4 else None
    # One place for all parts: memory that is new for each costs more than what is computed in it.
    place = torch.empty(min(rows.shape[0], _step(rows)) * groups * GROUP, dtype=torch.float32, device=tensor.device)
    for part in _parts(rows) if rows.numel() else ():
        grouped = _grouped(rows[part], place)
        if offsets is None:
            scales[part] = _quantize_8(grouped)
            codes[part] = grouped.flatten(1)[:, :n]
        else:
            scales[part], offsets[part] = _quantize_4(grouped)
            codes[part] = _pack(grouped.to(torch.uint8).flatten(1))[:, : n // 2]
    outer = tensor.shape[:-1]
    return QuantizedTensor(
        codes.reshape(*outer, codes.shape[-1]),
        scales.reshape(*outer, groups),
        None if offsets is None else offsets.reshape(*outer, groups),
        bits,
    )


def _step(rows: Tensor) -> int:
    """Rows at a time."""
    return max(1, _CHUNK // max(1, rows.shape[1]))


def _parts(rows: Tensor) -> Iterator[slice]:
    step = _step(rows)
    for start in range(0, rows.shape[0], step):
        yield slice(start, min(start + step, rows.shape[0]))


def _grouped(rows: Tensor, place: Tensor) -> Tensor:
    """(r, n) → (r, groups, GROUP) float32 in `place`; a short last group is filled with its last value, which changes no minimum or maximum."""
    count, n = rows.shape
    values = place[: count * math.ceil(n / GROUP) * GROUP].view(count, -1)
    values[:, :n] = rows
    values[:, n:] = values[:, n - 1 : n]
    return _groups(values)


def _checked(largest: Tensor) -> None:
    # NaN compares false, and the maximum of a group with NaN in it is NaN.
    if not bool((largest <= LARGEST).all()):
        raise CodecError("values that are not finite, or larger than 1e38, cannot be quantized")


def _scale(span: Tensor) -> Tensor:
    """bfloat16 scales; 1 where the span is (next to) nothing, so that no scale is ever zero."""
    return torch.where(span < _SMALLEST_SCALE, 1.0, span).to(torch.bfloat16)


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each group."""
    return values.amin(-1), values.amax(-1)  # aminmax takes five times as long


def _quantize_8(values: Tensor) -> Tensor:
    """Values in place to codes; their scales."""
    low, high = _range(values)
    largest = torch.maximum(high, -low)
    _checked(largest)
    scales = _scale(largest / 127)
    # Against the rounded scale: its rounding error is then no error of the code.
    values.mul_(scales.to(torch.float32).reciprocal().unsqueeze(-1)).round_().clamp_(-127, 127)
    return scales


def _quantize_4(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values in place to codes; their scales and offsets."""
    low, high = _range(values)
    _checked(torch.maximum(high, -low))
    zero = (low == 0) & (high == 0)
    if bool(zero.any()):  # zeros of either sign: aminmax says which is the offset, as it did for every shard that was ever made
        low[zero], high[zero] = torch.aminmax(values[zero], dim=-1)
    half = (high - low) * (0.5 * _RANGE)
    scales = _scale(half * (2 / 15))
    offsets = ((low + high) * 0.5 - half).to(torch.bfloat16)
    values.sub_(offsets.to(torch.float32).unsqueeze(-1)).mul_(scales.to(torch.float32).reciprocal().unsqueeze(-1)).round_().clamp_(0, 15)
    return scales, offsets
