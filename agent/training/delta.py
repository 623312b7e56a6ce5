"""Makes the delta: trained block minus the block as received."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from shared.assembly import read_shard


def write_delta(trained: Mapping[str, Mapping[str, torch.Tensor]], shards: Mapping[str, Path], path: Path) -> None:
    """Write the float32 differences of all trained blocks into one safetensors file at `path`.

    `trained` is block → canonical name → float32 tensor, `shards` the files that the blocks came from. The file is written
    aside, synced and renamed: it is whole or not there.
    """
    delta: dict[str, torch.Tensor] = {}
    for block, tensors in trained.items():
        base = read_shard(shards[block])
        for name, tensor in tensors.items():
            delta[name] = tensor.detach().to("cpu").sub(base[name].to(torch.float32))
    aside = path.with_suffix(".part")
    save_file(delta, aside, {"codec": "float32"})
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
