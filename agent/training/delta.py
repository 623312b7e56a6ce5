"""Makes the delta: trained block minus the block as received, in the codec that it travels in."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedcybgd.shared.contract.delta_rows import ROWS
from fedcybgd.shared.contract.words import DeltaCodec
from fedcybgd.shared.files import lossless
from fedcybgd.shared.models.assembly import read_shard
from fedcybgd.shared.tensors.delta_file import read_rows
from fedcybgd.shared.tensors.deltas import Encoded, decoded, encode_delta


def write_delta(
    trained: Mapping[str, Mapping[str, torch.Tensor]],
    shards: Mapping[str, Path],
    path: Path,
    codec: DeltaCodec = "float32",
    carried: Mapping[str, Path] | None = None,
    leave: Path | None = None,
    rows: Mapping[str, torch.Tensor] | None = None,
) -> float:
    """Write the differences of all trained blocks into one packed file at `path`, and say how much the codec left out.

    `trained` is block → canonical name → float32 tensor, `shards` the exact files that the blocks came from. Of the tables in `rows`
    (name → ascending numbers) only these rows were trained, and only they are written. Error feedback
    (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847): `carried` is block → file of what was left out of its last
    delta and is added to this one; what this one leaves out goes to `leave`/block.safetensors. Returns the norm of what was
    left out relative to that of the difference. Files are written aside, synced and renamed: they are whole or not there.
    Raises `CodecError` for values that are not finite.
    """
    encoded = Encoded()
    left_square, square = 0.0, 0.0
    for block, tensors in trained.items():
        base = read_shard(shards[block])
        last = read_shard(carried[block]) if carried and block in carried else {}
        left: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            index = (rows or {}).get(name)
            old = base[name] if index is None else read_rows(shards[block], name, index)
            difference = tensor.detach().to("cpu").sub(old.to(torch.float32))
            square += float(torch.linalg.vector_norm(difference)) ** 2
            if name in last:
                index, difference = _with_carried(index, difference, last, name)
            named = {} if index is None else {name + ROWS: index.to(torch.int32)}
            coded = encode_delta({name: difference}, codec)
            encoded.update(coded | named)
            left[name] = difference - decoded(coded, name, difference.shape, codec)
            left_square += float(torch.linalg.vector_norm(left[name])) ** 2
            left |= named
        if leave is not None:
            leave.mkdir(parents=True, exist_ok=True)
            _save(left, leave / f"{block}.safetensors", {})
    plain = path.with_suffix(".plain")
    _save(encoded, plain, {"codec": codec})
    aside = path.with_suffix(".part")
    with aside.open("wb") as file:
        file.writelines(lossless.pack(plain))
        file.flush()
        os.fsync(file.fileno())
    plain.unlink()
    aside.replace(path)
    return math.sqrt(left_square / square) if square else 0.0


def _with_carried(
    index: torch.Tensor | None, difference: torch.Tensor, last: Mapping[str, torch.Tensor], name: str
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """A difference and what was carried of it: of the rows that either has."""
    if index is None and name + ROWS not in last:
        return None, difference + last[name]
    if index is None:
        return None, difference.index_add(0, last[name + ROWS].to(torch.int64), last[name])
    before = last[name + ROWS].to(torch.int64) if name + ROWS in last else torch.arange(len(last[name]))
    both = torch.unique(torch.cat([index, before]))  # ascending
    total = difference.new_zeros(len(both), difference.shape[1])
    total[torch.searchsorted(both, index)] += difference
    total[torch.searchsorted(both, before)] += last[name]
    return both, total


def _save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    aside = path.with_suffix(".part")
    save_file(dict(tensors), aside, metadata)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
