"""Reads a delta's file: tensors whole or some rows at a time, and dense, also where only some rows of a table travel."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fedcybgd.shared.contract.delta_layout import stored_as
from fedcybgd.shared.contract.delta_rows import ROWS
from fedcybgd.shared.files.safetensors_header import read_header
from fedcybgd.shared.tensors.deltas import decoded
from fedcybgd.shared.tensors.quantized import CodecError

NUMBERS = 1 << 20
"""Numbers of a tensor that are computed with at once."""


class DeltaFile:
    """A plain (unpacked) delta; `names` are the tensors that it changes."""

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.names = frozenset(name for name in header.tensors if "::" not in name)
        self.codec = header.metadata.get("codec", "float32")
        self._path = path
        self._tensors = header.tensors
        self._rows: dict[str, Tensor] = {}

    def rows_of(self, name: str) -> int:
        """How many rows of a matrix it has."""
        return self._tensors[name].shape[0]

    def tensor(self, name: str, shape: tuple[int, ...], rows: slice | None = None) -> Tensor:
        """The difference of one tensor of this shape, or of some rows (along its first dimension): float32; NaN and infinity come through.

        Rows that a table's delta does not name are zero. Raises `CodecError` for a tensor that is none of this shape, for scales that are
        no numbers, and for rows that are none.
        """
        if name + ROWS not in self._tensors:
            return self._stored(name, shape, rows)
        index = self._index(name, shape)
        first, last, _ = (rows or slice(None)).indices(shape[0])
        begin, end = torch.searchsorted(index, torch.tensor([first, last])).tolist()
        result = torch.zeros(last - first, *shape[1:])
        if begin < end:
            result[index[begin:end] - first] = self._stored(name, (len(index), *shape[1:]), slice(begin, end))
        return result

    def _stored(self, name: str, shape: tuple[int, ...], rows: slice | None) -> Tensor:
        # Opened for each tensor: what was read of a file counts as memory as long as it is open.
        with safe_open(self._path, framework="pt") as file:
            if stored_as(shape, self.codec) in ("float32", "bfloat16"):
                found, wanted = some_rows(file, name, rows), shape if rows is None else (len(range(*rows.indices(shape[0]))), *shape[1:])
                if tuple(found.shape) != wanted or not found.is_floating_point():
                    raise CodecError(f"{name}: is {found.dtype} {list(found.shape)} where {list(wanted)} was expected")
                return found.to(torch.float32)
            if rows is None:
                return decoded(file, name, shape, self.codec)
            return decoded(_Rows(file, rows), name, (len(range(*rows.indices(shape[0]))), *shape[1:]), self.codec)

    def _index(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The numbers of the rows of a table that the delta is of, ascending; checked once."""
        if name not in self._rows:
            with safe_open(self._path, framework="pt") as file:
                index = file.get_tensor(name + ROWS)
            check_rows(name, index, shape, self._tensors[name].shape)
            self._rows[name] = index.to(torch.int64)
        return self._rows[name]


def check_rows(name: str, index: Tensor, shape: Sequence[int], stored: Sequence[int]) -> None:
    """Raises `CodecError` unless `index` names rows of a table of `shape`, ascending and each once, and as many as are `stored`."""
    if index.dtype != torch.int32 or index.ndim != 1 or len(shape) != 2:
        raise CodecError(
            f"{name}: the numbers of its rows are {index.dtype} {list(index.shape)}; they must be int32, in one dimension, of a matrix"
        )
    if not len(index) or [len(index)] != list(stored[:1]):
        raise CodecError(f"{name}: {len(index)} rows are named where the delta has shape {list(stored)}")
    if not bool((index[1:] > index[:-1]).all()):
        raise CodecError(f"{name}: its rows must be named in ascending order, each once")
    if int(index[0]) < 0 or int(index[-1]) >= shape[0]:
        raise CodecError(f"{name}: rows {int(index[0])} to {int(index[-1])} are named of a table of {shape[0]}")


class _Rows:
    """The same rows of every tensor of a file: codes have their scales in the same rows."""

    def __init__(self, file: Any, rows: slice) -> None:
        self._file, self._rows = file, rows

    def get_tensor(self, name: str) -> Tensor:
        return some_rows(self._file, name, self._rows)


def some_rows(file: Any, name: str, rows: slice | None) -> Tensor:
    """Rows of a tensor (along its first dimension), or all of it, from what `safe_open` gives."""
    found: Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
    return found


def row_slices(shape: tuple[int, ...]) -> Iterator[slice | None]:
    """Slices along the first dimension that together are a tensor of this shape, about `NUMBERS` numbers each; None: a single number."""
    if not shape:
        yield None
        return
    step = max(1, NUMBERS // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        yield slice(first, min(first + step, shape[0]))
