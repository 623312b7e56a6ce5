"""Opens deltas as they came: unpacked into files aside, read tensor by tensor."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from coordinator.storage import BlobStore
from shared import lossless
from shared.delta_layout import stored_as
from shared.deltas import decoded
from shared.safetensors_header import MAX_NUMBER, read_header


@dataclass(frozen=True)
class OpenDelta:
    """An accepted or submitted delta; `names` are the tensors that it changes."""

    names: frozenset[str]
    codec: str
    _file: Any

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The difference of one tensor, float32; NaN and infinity come through. Raises `CodecError` for scales that are no numbers."""
        if stored_as(shape, self.codec) in ("float32", "bfloat16"):
            plain: torch.Tensor = self._file.get_tensor(name)
            return plain.to(torch.float32)
        return decoded(self._file, name, shape, self.codec)


@contextlib.contextmanager
def open_delta(store: BlobStore, digest: str) -> Iterator[OpenDelta]:
    """A delta from the store. The structure was checked before it was taken, and with it the size of what is unpacked."""
    path = store.path(digest)
    with tempfile.TemporaryDirectory(prefix="fedcoord-") as folder:
        if lossless.is_packed(path):
            lossless.unpack(path, Path(folder) / "delta", MAX_NUMBER)
            path = Path(folder) / "delta"
        header = read_header(path)
        names = frozenset(name for name in header.tensors if "::" not in name)
        with safe_open(path, framework="pt") as file:
            yield OpenDelta(names, header.metadata.get("codec", "float32"), file)
