"""Which tensors a delta's file has in each codec, so that its header can be checked without loading torch.

| codec | two and more dimensions, rows of 16 and longer | others (biases, norms) |
|---|---|---|
| `float32`, `bfloat16` | as named | as named |
| `int8` | `name` I8, `name::scales` one float32 a row of the last dimension | float32 |
| `int4` | as quantized.py: `name` U8 (…, n / 2), `name::scales` and `name::offsets` BF16 (…, groups of 64); odd rows as in `int8` | float32 |
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from fedcybgd.shared.contract.errors import FedError

DELTA_CODECS = ("float32", "bfloat16", "int8", "int4")
GROUP = 64
MIN_ROW = 16
"""Shorter rows would pay more for their scale than they save."""
Stored = Literal["float32", "bfloat16", "int8", "int4"]


class DeltaCodecError(FedError):
    code = "delta_codec_unknown"


def stored_as(shape: Sequence[int], codec: str) -> Stored:
    """How one tensor travels in a delta of this codec. Raises `DeltaCodecError` for an unknown codec."""
    match codec:
        case "float32" | "bfloat16":
            return codec
        case "int8" | "int4":
            if len(shape) < 2 or shape[-1] < MIN_ROW:
                return "float32"
            return "int8" if shape[-1] % 2 else codec
    raise DeltaCodecError(f"unknown delta codec {codec!r}; known are {', '.join(DELTA_CODECS)}")


def expected_layout(shapes: Mapping[str, Sequence[int]], codec: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """name → shape of the delta's tensors → name → (safetensors dtype, shape) of what its file must hold, and nothing else."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        outer = tuple(shape[:-1])
        match stored_as(shape, codec):
            case "float32":
                layout[name] = ("F32", tuple(shape))
            case "bfloat16":
                layout[name] = ("BF16", tuple(shape))
            case "int8":
                layout[name] = ("I8", tuple(shape))
                layout[name + "::scales"] = ("F32", outer)
            case "int4":
                groups = (*outer, math.ceil(shape[-1] / GROUP))
                layout[name] = ("U8", (*outer, shape[-1] // 2))
                layout[name + "::scales"] = layout[name + "::offsets"] = ("BF16", groups)
    return layout
