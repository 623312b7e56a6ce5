"""A delta from parts that tests have at hand."""

from collections.abc import Mapping
from pathlib import Path

import torch

from fedcybgd.agent.training import delta
from fedcybgd.shared.contract.words import DeltaCodec

Tensors = Mapping[str, torch.Tensor]


def write_delta(
    trained: Mapping[str, Tensors],
    shards: Mapping[str, Path],
    path: Path,
    codec: DeltaCodec = "float32",
    carried: Mapping[str, Path] | None = None,
    leave: Path | None = None,
    rows: Tensors | None = None,
    transform: delta.DeltaTransform = delta.unchanged,
) -> float:
    """The delta of `trained` (block, name), whose blocks came from `shards`, with what is `carried` from earlier ones."""
    blocks = {b: delta.TrainedBlock(tensors, shards[b], rows or {}, (carried or {}).get(b)) for b, tensors in trained.items()}
    return delta.write_delta(blocks, path, codec, leave, transform)
