"""Writes shards into the store tensor by tensor, so that memory holds one chunk or one tensor and never a model."""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.files.safetensors_header import Header, TensorInfo, copy_tensor, header_of, pack_header
from fedcybgd.shared.tensors.dtypes import DTYPE_NAMES, DTYPES


@dataclass(frozen=True)
class Piece:
    """A tensor to write: its name and type, and where its bytes come from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Iterable[bytes | memoryview]]


def from_blob(store: EngineStore, digest: str, header: Header, tensor: TensorInfo, name: str) -> Piece:
    """As `from_file`, of a shard in the store."""

    def read() -> Iterator[bytes]:
        with store.open(digest) as file:
            yield from copy_tensor(file, header, tensor.name)

    return Piece(name, tensor.dtype, tensor.shape, read)


def from_file(path: Path, header: Header, tensor: TensorInfo, name: str) -> Piece:
    """The tensor of a safetensors file under the name `name`, byte for byte."""

    def read() -> Iterator[bytes]:
        with path.open("rb") as file:
            yield from copy_tensor(file, header, tensor.name)

    return Piece(name, tensor.dtype, tensor.shape, read)


def from_tensor(name: str, shape: Sequence[int], dtype: torch.dtype, make: Callable[[], torch.Tensor]) -> Piece:
    """A tensor that `make` computes when its turn has come."""

    def read() -> Iterator[memoryview]:
        tensor = make().detach().contiguous()
        assert tensor.dtype == dtype
        assert list(tensor.shape) == list(shape)
        yield as_bytes(tensor)

    return Piece(name, DTYPE_NAMES[dtype], tuple(shape), read)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Of a tensor, as a shard has them."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def write_shard(store: EngineStore, pieces: Sequence[Piece], metadata: dict[str, str] | None = None) -> tuple[str, int]:
    """Write `pieces` as one safetensors blob; returns its digest and its size in bytes."""
    with store.writer() as writer:
        writer.write(pack_header([(p.name, p.dtype, p.shape) for p in pieces], metadata))
        for piece in pieces:
            for chunk in piece.read():
                writer.write(chunk)
    return writer.digest, writer.size


def size_of(pieces: Iterable[Piece]) -> int:
    """Bytes of their numbers, without the headers of what is written."""
    return sum(math.prod(piece.shape) * DTYPES[piece.dtype].itemsize for piece in pieces)


def write_blob(store: EngineStore, data: bytes) -> tuple[str, int]:
    with store.writer() as writer:
        writer.write(data)
    return writer.digest, writer.size


def write_chunks(store: EngineStore, chunks: Iterable[bytes | memoryview]) -> tuple[str, int]:
    with store.writer() as writer:
        for chunk in chunks:
            writer.write(chunk)
    return writer.digest, writer.size


def write_json(store: EngineStore, name: str, value: Any) -> FileRef:
    digest, size = write_blob(store, json.dumps(value, indent=2, sort_keys=True).encode())
    return FileRef(name=name, digest=digest, size=size)


def shard_header(store: EngineStore, digest: str) -> Header:
    with store.open(digest) as file:
        return header_of(file, digest)


@contextlib.contextmanager
def as_directory(store: EngineStore, files: Iterable[FileRef]) -> Iterator[Path]:
    """A directory that holds `files` under their names, for libraries that want one."""
    with store.scratch() as folder, contextlib.ExitStack() as held:
        for file in files:
            (folder / file.name).symlink_to(held.enter_context(store.localised(file.digest)).resolve())
        yield folder
