"""Encodes a delta for the wire and adds decoded deltas to the coordinator's float32 master.

At fine-tuning step sizes a weight in bfloat16 loses about 90 % of the change, while an int8 row-scaled *delta* loses about 1 % and
int4 in groups of 64 about 9 %. The layout of the file is in delta_layout.py. Every step rounds once and works element by element (or takes
the maximum of a row), so the bits are the same in every process.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedcybgd.shared.contract.delta_layout import expected_layout, stored_as
from fedcybgd.shared.tensors.quantized import LARGEST, CodecError, QuantizedTensor, TensorSource, quantize

_TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8, "U8": torch.uint8}
_SMALLEST_SCALE = 2.0**-100
"""Rows that need a finer scale are sent as zeros: their deltas are lost in any float32 weight, and reciprocals stay finite."""


class Encoded(dict[str, Tensor]):
    """An encoded delta in memory, to be decoded before it is sent (for error feedback)."""

    def get_tensor(self, name: str) -> Tensor:
        return self[name]


def encode_delta(delta: Mapping[str, Tensor], codec: str) -> Encoded:
    """What a file of this codec stores for `delta`: canonical name → float tensor, on any device. Raises `CodecError` for values not finite."""
    encoded = Encoded()
    for name, tensor in delta.items():
        encoded.update(_encode(name, tensor.detach().to("cpu", torch.float32), codec))
    return encoded


def _encode(name: str, tensor: Tensor, codec: str) -> dict[str, Tensor]:
    largest = tensor.abs().amax() if tensor.numel() else torch.zeros(())
    # NaN compares false.
    if not bool(largest <= LARGEST):
        raise CodecError(f"{name}: a delta with values that are not finite, or larger than 1e38, cannot be sent")
    match stored_as(tensor.shape, codec):
        case "float32":
            return {name: tensor.contiguous()}
        case "bfloat16":
            return {name: tensor.to(torch.bfloat16).contiguous()}
        case "int8":
            scales = tensor.abs().amax(-1) / 127 if tensor.numel() else tensor.new_zeros(tensor.shape[:-1])
            scales = torch.where(scales < _SMALLEST_SCALE, 0.0, scales)
            inverse = torch.where(scales > 0, scales.reciprocal(), 0.0)
            codes = (tensor * inverse.unsqueeze(-1)).round_().clamp_(-127, 127).to(torch.int8)
            return {name: codes.contiguous(), name + "::scales": scales}
        case "int4":
            quantized = quantize(tensor, 4)
            assert quantized.offsets is not None
            return {name: quantized.codes, name + "::scales": quantized.scales, name + "::offsets": quantized.offsets}


def decoded(file: TensorSource, name: str, shape: Sequence[int], codec: str) -> Tensor:
    """One tensor of an encoded delta: float32, of the shape asked for.

    Raises `CodecError` when a part is missing or not of its type and shape, when a value or scale is not finite or too large, when a
    scale is negative, or zero where its codes are not.
    """
    parts = {part: _part(file, part, dtype, size) for part, (dtype, size) in expected_layout({name: shape}, codec).items()}
    values = parts[name]
    match stored_as(shape, codec):
        case "float32" | "bfloat16":
            result = values.to(torch.float32)
        case "int8":
            scales = parts[name + "::scales"]
            if bool((scales < 0).any()):
                raise CodecError(f"{name}: scales must not be negative")
            if bool((values[scales == 0] != 0).any()):
                raise CodecError(f"{name}: a scale of zero belongs to a row of zeros")
            result = values.to(torch.float32).mul_(scales.unsqueeze(-1))
        case "int4":
            scales = parts[name + "::scales"]
            if not bool((scales > 0).all()):
                raise CodecError(f"{name}: scales must be greater than zero")
            result = QuantizedTensor(values, scales, parts[name + "::offsets"], 4).dequantize()
    return result


def _part(file: TensorSource, part: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
    try:
        tensor = file.get_tensor(part)
    except Exception as error:  # the library's own error type is not exported
        raise CodecError(f"{part}: is missing from the delta") from error
    if tensor.dtype != _TORCH_DTYPES[dtype] or tuple(tensor.shape) != shape:
        raise CodecError(f"{part}: is {tensor.dtype} {list(tensor.shape)} where {dtype} {list(shape)} was expected")
    # LARGEST / 127 leaves room for the product of scale and code; NaN compares false.
    limit = LARGEST / 127 if part.endswith("::scales") else LARGEST
    if tensor.is_floating_point() and not bool((tensor.abs() <= limit * 1.01).all()):
        raise CodecError(f"{part}: has values that are not finite, or too large")
    return tensor


def add_decoded(base: Tensor, terms: Sequence[tuple[Tensor, float]]) -> Tensor:
    """base + Σ weight · delta in float32, term by term in the order given: each product and each sum is rounded once.

    No fused multiply-add, whose use would depend on the machine; `base` is left as it is.
    """
    result = base.to(torch.float32, copy=True)
    for delta, weight in terms:
        delta = delta.to(torch.float32)
        result.add_(delta if weight == 1 else delta.mul(weight))
    return result
