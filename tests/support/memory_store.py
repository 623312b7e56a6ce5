"""A store and uploads without a directory: the protocols promise enough to run a coordinator on, and nothing that only files have."""

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from fedcybgd.coordinator.storage import BlobCorrupt, BlobDamaged, BlobMissing, StoreFull
from fedcybgd.coordinator.storage.uploads import NothingArrived
from fedcybgd.shared.contract.digests import digest_of

TICKS = count(1)


@dataclass
class Memory:
    """What lies in the store, and what a test may do to it from outside."""

    blobs: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    uploads: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    full: str | None = None
    """what fails for want of room: "open", "write" or "finish" """
    links: str | None = None
    """an address before the digest, from which others serve the blobs"""
    held: int = 0

    def no_room(self, when: str) -> None:
        if self.full == when:
            raise StoreFull("the store is full")


class MemoryStore:
    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def has(self, digest: str) -> bool:
        return digest in self.memory.blobs

    def size(self, digest: str) -> int:
        return len(self._bytes(digest))

    def check(self, digest: str) -> None:
        if digest_of(self._bytes(digest)) != digest:
            del self.memory.blobs[digest]
            raise BlobDamaged(f"blob {digest} is damaged", digest=digest)

    def open(self, digest: str) -> BinaryIO:
        self.check(digest)
        return io.BytesIO(self._bytes(digest))

    def link(self, digest: str, seconds: float) -> str | None:
        return None if self.memory.links is None else self.memory.links + digest

    def writer(self) -> "MemoryWriter":
        return MemoryWriter(self.memory)

    def stored(self) -> Iterator[tuple[str, float]]:
        yield from [(digest, written) for digest, (_, written) in list(self.memory.blobs.items())]

    def delete(self, digest: str, written: float | None = None) -> bool:
        found = self.memory.blobs.get(digest)
        if found is None or (written is not None and found[1] != written):
            return False
        del self.memory.blobs[digest]
        return True

    def touch(self, digest: str) -> None:
        self.memory.blobs[digest] = (self._bytes(digest), _now())

    @contextmanager
    def hold(self) -> Iterator[None]:
        self.memory.held += 1
        try:
            yield
        finally:
            self.memory.held -= 1

    def is_held(self) -> bool:
        return self.memory.held > 0

    def sweep(self) -> None:
        pass

    @contextmanager
    def localised(self, digest: str) -> Iterator[Path]:
        self.check(digest)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / digest
            path.write_bytes(self._bytes(digest))
            yield path

    def adopt(self, path: Path, digest: str) -> None:
        data = path.read_bytes()
        put(self.memory, data, digest)
        path.unlink()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def _bytes(self, digest: str) -> bytes:
        try:
            return self.memory.blobs[digest][0]
        except KeyError:
            raise BlobMissing(f"no blob {digest}", digest=digest) from None


def put(memory: Memory, data: bytes, digest: str) -> None:
    if (actual := digest_of(data)) != digest:
        raise BlobCorrupt(f"the bytes have digest {actual}, not {digest}", expected=digest, actual=actual)
    memory.no_room("finish")
    memory.blobs[digest] = (data, _now())


def _now() -> float:
    return time.time() + next(TICKS) * 1e-6


class MemoryWriter:
    def __init__(self, memory: Memory) -> None:
        self.digest, self.size = "", 0
        self._memory, self._bytes = memory, bytearray()
        memory.no_room("open")

    def write(self, data: bytes | memoryview) -> None:
        self._memory.no_room("write")
        self._bytes += data
        self.size = len(self._bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            put(self._memory, bytes(self._bytes), digest_of(bytes(self._bytes)))
            self.digest = digest_of(bytes(self._bytes))


class MemoryUploads:
    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def offset(self, key: str) -> int:
        return len(self.memory.uploads.get(key, (b"", 0))[0])

    def append(self, key: str, at: int, data: bytes) -> None:
        self.memory.no_room("write")
        before = self.memory.uploads.get(key, (b"", 0))[0]
        self.memory.uploads[key] = (before[:at] + data + before[at + len(data) :], time.time())

    def open(self, key: str) -> BinaryIO:
        return io.BytesIO(self._bytes(key))

    def finish(self, key: str, digest: str) -> None:
        put(self.memory, self._bytes(key), digest)
        self.discard(key)

    def discard(self, key: str) -> None:
        self.memory.uploads.pop(key, None)

    def sweep(self, older_than_s: float) -> None:
        for key, (_, at) in list(self.memory.uploads.items()):
            if time.time() - at > older_than_s:
                self.discard(key)

    def _bytes(self, key: str) -> bytes:
        try:
            return self.memory.uploads[key][0]
        except KeyError:
            raise NothingArrived(key) from None
