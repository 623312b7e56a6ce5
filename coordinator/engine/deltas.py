"""Opens deltas as they came: unpacked into files aside, read tensor by tensor."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from coordinator.storage import BlobStore
from shared import lossless
from shared.codecs import CodecError
from shared.delta_layout import stored_as
from shared.deltas import decoded
from shared.safetensors_header import Header, read_header

NUMBERS = 1 << 20
"""Numbers of a tensor that are computed with at once."""
HEADER, HEADER_A_TENSOR = 1 << 20, 4096
"""Bytes that are granted to a delta's header: for all of it, and for each tensor with its scales and offsets."""


@dataclass(frozen=True)
class OpenDelta:
    """An accepted or submitted delta; `names` are the tensors that it changes."""

    names: frozenset[str]
    codec: str
    _path: Path

    def tensor(self, name: str, shape: tuple[int, ...], rows: slice | None = None) -> torch.Tensor:
        """The difference of one tensor of this shape, or of some rows (along its first dimension): float32; NaN and infinity come through.

        Raises `CodecError` for a tensor that is none of this shape, and for scales that are no numbers.
        """
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


class _Rows:
    """The same rows of every tensor of a file: codes have their scales in the same rows."""

    def __init__(self, file: Any, rows: slice) -> None:
        self._file, self._rows = file, rows

    def get_tensor(self, name: str) -> torch.Tensor:
        return some_rows(self._file, name, self._rows)


def some_rows(file: Any, name: str, rows: slice | None) -> torch.Tensor:
    """Rows of a tensor (along its first dimension), or all of it, from what `safe_open` gives."""
    found: torch.Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
    return found


def row_slices(shape: tuple[int, ...]) -> Iterator[slice | None]:
    """Slices along the first dimension that together are a tensor of this shape, about `NUMBERS` numbers each; None: a single number."""
    if not shape:
        yield None
        return
    step = max(1, NUMBERS // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        yield slice(first, min(first + step, shape[0]))


def limit_of(headers: Iterable[Header]) -> int:
    """Bytes that the delta of blocks with these headers has at the most, unpacked: float32 is the widest codec."""
    return sum(4 * tensor.numel + HEADER_A_TENSOR for header in headers for tensor in header.tensors.values()) + HEADER


@contextlib.contextmanager
def open_delta(store: BlobStore, digest: str, limit: int) -> Iterator[OpenDelta]:
    """A delta from the store. Raises `PackedError` or `HeaderError` for what is none, or would unpack to more than `limit` bytes."""
    path = store.path(digest)
    with store.scratch() as folder:
        if lossless.is_packed(path):
            lossless.unpack(path, folder / "delta", limit)
            path = folder / "delta"
        header = read_header(path)
        names = frozenset(name for name in header.tensors if "::" not in name)
        yield OpenDelta(names, header.metadata.get("codec", "float32"), path)
