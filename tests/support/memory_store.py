"""A store and uploads without a directory: the protocols promise enough to run a coordinator on, and nothing that only files have."""

import io
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from fedcybgd.coordinator.storage import BlobCorrupt, BlobDamaged, BlobMissing, StoreFull
from fedcybgd.coordinator.storage.uploads import BeingChecked, Elsewhere, NothingArrived, UploadKey
from fedcybgd.shared.contract.digests import digest_of

TICKS = count(1)


@dataclass
class Memory:
    """What lies in the store, and what a test may do to it from outside."""

    blobs: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    uploads: dict[UploadKey, tuple[bytes, float]] = field(default_factory=dict)
    taken: dict[UploadKey, bytes] = field(default_factory=dict)
    kept: set[UploadKey] = field(default_factory=set)
    alone: threading.RLock = field(default_factory=threading.RLock)
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
        self._bytes(digest)
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

    def check_room(self, size: int) -> None:
        pass

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
    best_piece = 1 << 20

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def offset(self, key: UploadKey) -> int:
        with self.memory.alone:
            return len(self.memory.taken.get(key, self._arrived(key)))

    def is_kept(self, key: UploadKey) -> bool:
        return key in self.memory.kept

    def append(self, key: UploadKey, at: int, data: bytes, may: Callable[[], None]) -> None:
        with self.memory.alone:
            may()
            if key in self.memory.taken:
                raise Elsewhere(len(self.memory.taken[key]))
            before = self._arrived(key)
            if at > len(before):
                raise Elsewhere(len(before))
            self.memory.no_room("write")
            if key not in self.memory.uploads:
                for other in [other for other in self.keys() if other.place == key.place]:
                    self.discard(other)
            self.memory.uploads[key] = (before[:at] + data + before[at + len(data) :], time.time())

    @contextmanager
    def take(self, key: UploadKey) -> Iterator["MemoryTaken"]:
        until = time.monotonic() + 30
        while not self._move_away(key):
            if time.monotonic() > until:
                raise BeingChecked(key)
            time.sleep(0.01)
        try:
            yield MemoryTaken(self.memory, key)
        finally:
            with self.memory.alone:
                if (data := self.memory.taken.pop(key, None)) is not None:
                    self.memory.uploads[key] = (data, time.time())

    def _move_away(self, key: UploadKey) -> bool:
        with self.memory.alone:
            if key in self.memory.taken:
                return False
            if key not in self.memory.uploads:
                raise NothingArrived(key)
            self.memory.taken[key] = self.memory.uploads.pop(key)[0]
            return True

    def discard(self, key: UploadKey) -> None:
        with self.memory.alone:
            self.memory.uploads.pop(key, None)
            self.memory.taken.pop(key, None)
            self.memory.kept.discard(key)

    def keys(self) -> Collection[UploadKey]:
        return {*self.memory.uploads, *self.memory.taken, *self.memory.kept}

    def sweep(self, older_than_s: float) -> None:
        for key, (_, at) in list(self.memory.uploads.items()):
            if time.time() - at > older_than_s:
                self.discard(key)

    def _arrived(self, key: UploadKey) -> bytes:
        return self.memory.uploads.get(key, (b"", 0))[0]


class MemoryTaken:
    def __init__(self, memory: Memory, key: UploadKey) -> None:
        self._memory, self._key = memory, key

    def open(self) -> BinaryIO:
        return io.BytesIO(self._bytes())

    def keep(self) -> None:
        put(self._memory, self._bytes(), self._key.digest)
        self._memory.kept.add(self._key)
        self.drop()

    def drop(self) -> None:
        self._memory.taken.pop(self._key, None)

    def _bytes(self) -> bytes:
        try:
            return self._memory.taken[self._key]
        except KeyError:
            raise NothingArrived(self._key) from None
