"""The values that a shard stands for, as whoever trains with it sees them."""

from pathlib import Path

from torch import Tensor

from fedcybgd.shared.tensors.codecs import read_encoded
from fedcybgd.shared.tensors.quantized import QuantizedTensor


def decode(path: Path, codec: str) -> dict[str, Tensor]:
    """The tensors of a shard, dense: float32 where they were quantized, the others as they are stored."""
    return {n: t.dequantize() if isinstance(t, QuantizedTensor) else t for n, t in read_encoded(path, codec).items()}
