"""Opens deltas as they came: unpacked into files aside, read tensor by tensor."""

import contextlib
from collections.abc import Collection, Iterable, Iterator

from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.safetensors_header import Header
from fedcybgd.shared.tensors.delta_file import DeltaFile

HEADER, HEADER_A_TENSOR = 1 << 20, 4096
"""Bytes that are granted to a delta's header: for all of it, and for each tensor with its scales and offsets."""


def limit_of(headers: Iterable[Header]) -> int:
    """Bytes that the delta of blocks with these headers has at the most, unpacked: float32 is the widest codec, and rows have numbers."""
    tensors = [tensor for header in headers for tensor in header.tensors.values()]
    return sum(4 * t.numel + 4 * sum(t.shape[:1]) + HEADER_A_TENSOR for t in tensors) + HEADER


@contextlib.contextmanager
def open_delta(store: EngineStore, digest: str, limit: int, names: Collection[str] | None = None) -> Iterator[DeltaFile]:
    """A delta from the store, of which only the tensors with these `names` can be read, where they are given: one that was admitted.

    Raises `PackedError` or `HeaderError` for what is none, or would unpack to more than `limit` bytes.
    """
    with store.localised(digest) as path, store.scratch() as folder:
        if lossless.is_packed(path):
            if names is None:
                lossless.unpack(path, folder / "delta", limit)
            else:
                lossless.unpack_some(path, folder / "delta", limit, names)
            path = folder / "delta"
        yield DeltaFile(path)
