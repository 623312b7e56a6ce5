"""Makes the delta: trained block minus the block as received, in the codec that it travels in."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedcybgd.shared.contract.delta_rows import ROWS
from fedcybgd.shared.contract.words import DeltaCodec
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.safetensors_header import read_header
from fedcybgd.shared.models.assembly import read_shard
from fedcybgd.shared.tensors.codecs import names_in, read_dense_rows, read_stored
from fedcybgd.shared.tensors.deltas import Encoded, decoded, encode_delta
from fedcybgd.shared.tensors.quantized import QuantizedTensor

NO_FACTORS: Mapping[str, Tensor] = {}


class DeltaTransform(Protocol):
    """What every delta passes through between training and encoding: takes the differences by name, gives others for the same names.

    It sees the whole delta at once. Shapes stay; of a table that was trained in some rows alone, a difference is that of these rows.
    What an earlier delta's codec left out is added afterwards: it went through the transform then.
    """

    def __call__(self, differences: Mapping[str, Tensor]) -> Mapping[str, Tensor]: ...


def unchanged(differences: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return differences


@dataclass(frozen=True)
class TrainedBlock:
    """A block after training, and what its delta is made of."""

    tensors: Mapping[str, Tensor]
    """by canonical name, in float32"""
    shard: Path
    """the file that it came from, exact or in 8 bits"""
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    """of the tables that were trained in some rows alone: which, ascending"""
    residual: Path | None = None
    """what the codec left out of its last delta"""

    @cached_property
    def received(self) -> dict[str, Tensor | QuantizedTensor]:
        header = read_header(self.shard)
        with safe_open(self.shard, framework="pt") as file:
            return {name: read_stored(file, name, header) for name in names_in(header)}

    def difference(self, name: str) -> Tensor:
        index, old = self.rows.get(name), self.received[name]
        if index is not None:
            old = read_dense_rows(self.shard, name, index)
        elif isinstance(old, QuantizedTensor):
            old = old.dequantize()
        return self.tensors[name].detach().to("cpu").sub(old.to(torch.float32))


class Differences(Mapping[str, Tensor]):
    """Trained minus received, by canonical name. Each is made when it is asked for: memory holds one at a time.

    The factors of corrections were not received: they are themselves.
    """

    def __init__(self, blocks: Mapping[str, TrainedBlock], factors: Mapping[str, Tensor]) -> None:
        self._block_of = {name: block for block in blocks.values() for name in block.tensors}
        self._factors = factors

    def __getitem__(self, name: str) -> Tensor:
        if name in self._factors:
            return self._factors[name].detach().to("cpu", torch.float32)
        return self._block_of[name].difference(name)

    def __contains__(self, name: object) -> bool:
        return name in self._factors or name in self._block_of

    def __iter__(self) -> Iterator[str]:
        yield from self._block_of
        yield from self._factors

    def __len__(self) -> int:
        return len(self._block_of) + len(self._factors)


def write_delta(
    blocks: Mapping[str, TrainedBlock],
    path: Path,
    codec: DeltaCodec = "float32",
    new_residuals: Path | None = None,
    transform: DeltaTransform = unchanged,
    factors: Mapping[str, Tensor] = NO_FACTORS,
) -> float:
    """Write the differences of all trained blocks into one packed file at `path`, and say how much the codec left out of them.

    The factors of corrections go along, as they are: what the codec leaves out of them is not carried, for the next begin anew.

    Error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847): what was left out of a block's last delta is added to
    this one; what this one leaves out goes to `new_residuals`/block.safetensors. Returns the norm of what was left out relative to that of
    the difference. Files are written aside, synced and renamed: they are whole or not there.
    Raises `CodecError` for values that are not finite.
    """
    encoded = Encoded()
    left_square, square = 0.0, 0.0
    differences = transform(Differences(blocks, factors))
    for block, trained in blocks.items():
        carried = read_shard(trained.residual) if trained.residual is not None else {}
        left: dict[str, Tensor] = {}
        for name, tensor in trained.tensors.items():
            index, difference = trained.rows.get(name), _transformed(differences, name, tensor)
            square += float(torch.linalg.vector_norm(difference)) ** 2
            if name in carried:
                index, difference = _with_carried(index, difference, carried, name)
            named = {} if index is None else {name + ROWS: index.to(torch.int32)}
            coded = encode_delta({name: difference}, codec)
            encoded.update(coded | named)
            left[name] = difference - decoded(coded, name, difference.shape, codec)
            left_square += float(torch.linalg.vector_norm(left[name])) ** 2
            left |= named
        if new_residuals is not None:
            new_residuals.mkdir(parents=True, exist_ok=True)
            _save(left, new_residuals / f"{block}.safetensors", {})
    for name, factor in factors.items():
        encoded.update(encode_delta({name: _transformed(differences, name, factor)}, codec))
    _pack(encoded, path, codec)
    return math.sqrt(left_square / square) if square else 0.0


def _transformed(differences: Mapping[str, Tensor], name: str, tensor: Tensor) -> Tensor:
    """What the transform has made of the difference of a tensor, or of a factor."""
    if name not in differences:
        raise ValueError(f"the transform of deltas made nothing of {name}")
    difference = differences[name]
    if difference.shape != tensor.shape:
        raise ValueError(f"the transform of deltas made {tuple(difference.shape)} of {tuple(tensor.shape)} for {name}")
    return difference


def _with_carried(index: Tensor | None, difference: Tensor, carried: Mapping[str, Tensor], name: str) -> tuple[Tensor | None, Tensor]:
    """A difference and what was carried of it: of the rows that either has."""
    if index is None and name + ROWS not in carried:
        return None, difference + carried[name]
    if index is None:
        return None, difference.index_add(0, carried[name + ROWS].to(torch.int64), carried[name])
    before = carried[name + ROWS].to(torch.int64) if name + ROWS in carried else torch.arange(len(carried[name]))
    both = torch.unique(torch.cat([index, before]))  # ascending
    total = difference.new_zeros(len(both), difference.shape[1])
    total[torch.searchsorted(both, index)] += difference
    total[torch.searchsorted(both, before)] += carried[name]
    return both, total


def _pack(encoded: Encoded, path: Path, codec: DeltaCodec) -> None:
    plain = path.with_suffix(".plain")
    _save(encoded, plain, {"codec": codec})
    aside = path.with_suffix(".part")
    with aside.open("wb") as file:
        file.writelines(lossless.pack(plain))
        file.flush()
        os.fsync(file.fileno())
    plain.unlink()
    aside.replace(path)


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    aside = path.with_suffix(".part")
    save_file(dict(tensors), aside, metadata)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
