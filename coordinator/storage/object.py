"""Keeps blobs as objects in S3 or what is compatible with it, named by their digest; what is read here is copied to a disk first."""

import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedcybgd.coordinator.storage import scratch
from fedcybgd.coordinator.storage.base import BlobCorrupt, BlobDamaged, BlobMissing
from fedcybgd.coordinator.storage.blob_file import BlobFile
from fedcybgd.coordinator.storage.bucket import PIECE, Bucket, Found, StorageAway
from fedcybgd.coordinator.storage.cache import BlobCache, WrongBytes
from fedcybgd.coordinator.storage.full import full_disk_told
from fedcybgd.coordinator.storage.local import DAMAGED, DAMAGED_KEPT_S
from fedcybgd.coordinator.storage.renewed import renewed
from fedcybgd.shared.contract.digests import digest_of_file

BLOBS, TOUCHED, DELETING, HOLDS, CLOCK = "blobs", "touched", "deleting", "holds", "clock"
"""Blobs; that one counts as written again; that one is being deleted; that nothing is to be deleted; what is written to ask for the time."""
HOLD_EVERY_S, HOLD_ENDS_S = 10.0, 60.0
"""A hold is renewed while its process lives, and has ended when it was not for so long."""
DELETING_ENDS_S = 60.0
"""After so long whoever deletes has died of it."""
LOOK_EVERY_S = 0.1


class ObjectBlobStore:
    """A writer and a deleter of the same blob may meet, on two machines, and nothing locks them out. So each says first what it is about
    to do, and looks then what the other has said: the deleter at the marks of whoever wrote, the writer whether the blob is still there.
    """

    def __init__(self, bucket: Bucket, cache: BlobCache) -> None:
        self.bucket, self._cache = bucket, cache
        cache.sweep()

    def has(self, digest: str) -> bool:
        return self.bucket.find(_name(digest)) is not None

    def size(self, digest: str) -> int:
        return self._found(digest).size

    def check(self, digest: str) -> None:
        with self.localised(digest):
            pass

    def open(self, digest: str) -> BinaryIO:
        with self.localised(digest) as path:
            return path.open("rb")

    def link(self, digest: str, seconds: float) -> str | None:
        self._found(digest)
        return self.bucket.link(_name(digest), seconds)

    @contextmanager
    def localised(self, digest: str) -> Iterator[Path]:
        found = self._found(digest)
        with self._copied(digest, found) as path:
            yield path

    @contextmanager
    def _copied(self, digest: str, found: Found) -> Iterator[Path]:
        copy = self._cache.localised(digest, lambda: self.bucket.chunks(found.name))
        try:
            path = copy.__enter__()
        except FileNotFoundError:
            raise BlobMissing(f"no blob {digest}", digest=digest) from None
        except WrongBytes as error:
            self._set_aside(digest)
            text = f"blob {digest} is damaged: its {error}; they lie in {DAMAGED}/ of the object storage"
            raise BlobDamaged(text, digest=digest) from error
        try:
            yield path
        finally:
            copy.__exit__(None, None, None)

    def _set_aside(self, digest: str) -> None:
        with suppress(FileNotFoundError):
            self.bucket.move(_name(digest), f"{DAMAGED}/{digest}.{secrets.token_hex(4)}")

    def writer(self) -> "ObjectBlobWriter":
        return ObjectBlobWriter(self, self._cache.new_file())

    def adopt(self, path: Path, digest: str) -> None:
        actual = digest_of_file(path)
        if actual != digest:
            raise BlobCorrupt(f"the bytes have digest {actual}, not {digest}", expected=digest, actual=actual)
        self.publish(path, digest)

    def publish(self, path: Path, digest: str) -> None:
        """Have a finished file in the storage, and keep it here as its copy."""
        size, name = path.stat().st_size, _name(digest)
        while True:
            found = self.bucket.find(name)
            if found is not None and found.size == size:
                self._say_touched(digest)
            elif found is None and size <= PIECE:
                if not self.bucket.create(name, path.read_bytes()):
                    continue
            else:
                self.bucket.upload(name, path, size)
            if self._outlived_deletion(digest):
                break
        self._cache.adopt(path, digest)

    def stored(self) -> Iterator[tuple[str, float]]:
        marks: dict[str, float] = {}
        for mark in self.bucket.list(TOUCHED):
            digest = mark.name.split("/")[1]
            marks[digest] = max(marks.get(digest, 0), _marked(mark))
        for blob in self.bucket.list(BLOBS):
            digest = blob.name.rpartition("/")[2]
            yield digest, marks.get(digest, blob.modified)

    def delete(self, digest: str, written: float | None = None) -> bool:
        said, began = f"{DELETING}/{digest}/{secrets.token_hex(4)}", time.monotonic()
        self.bucket.put(said, b"")
        try:
            marks = list(self.bucket.list(f"{TOUCHED}/{digest}"))
            found = self.bucket.find(_name(digest))
            if found is None or (written is not None and not _is_of(written, marks, found)):
                return False
            # The marks first: a blob that is written again must not find the mark by which it was judged.
            self.bucket.delete(mark.name for mark in marks)
            if time.monotonic() - began > DELETING_ENDS_S / 2:  # a writer may soon wait for it no longer
                return False
            self.bucket.delete([found.name])
            self._cache.drop(digest)
            return True
        finally:
            self.bucket.delete([said])

    def touch(self, digest: str) -> None:
        self._found(digest)
        self._say_touched(digest)
        if not self._outlived_deletion(digest):
            raise BlobMissing(f"no blob {digest}", digest=digest)

    def _say_touched(self, digest: str) -> None:
        """By an object of another name each time: the storage's clock may count whole seconds only."""
        before, name = [mark.name for mark in self.bucket.list(f"{TOUCHED}/{digest}")], f"{TOUCHED}/{digest}/{secrets.token_hex(2)}"
        self.bucket.put(name, b"")
        self.bucket.delete(one for one in before if one != name)

    def _outlived_deletion(self, digest: str) -> bool:
        """Whether a blob that was just written or touched is there, once nobody is about to delete it."""
        until = time.monotonic() + DELETING_ENDS_S
        while said := [one.name for one in self.bucket.list(f"{DELETING}/{digest}")]:
            if time.monotonic() > until:
                self.bucket.delete(said)
            time.sleep(LOOK_EVERY_S)
        return self.has(digest)

    @contextmanager
    def hold(self) -> Iterator[None]:
        name = f"{HOLDS}/{secrets.token_hex(8)}"
        self.bucket.put(name, b"")
        try:
            with renewed(HOLD_EVERY_S, lambda: self.bucket.put(name, b"")):
                yield
        finally:
            with suppress(StorageAway):
                self.bucket.delete([name])

    def is_held(self) -> bool:
        held = list(self.bucket.list(HOLDS))
        return bool(held) and self._now() - max(hold.modified for hold in held) < HOLD_ENDS_S

    def check_room(self, size: int) -> None:
        """What object storage has room for nobody knows beforehand."""

    def scratch(self) -> AbstractContextManager[Path]:
        return scratch.folder(self._cache.aside)

    def sweep(self) -> None:
        self._cache.sweep()
        now = self._now()
        for folder, kept_s in ((DAMAGED, DAMAGED_KEPT_S), (HOLDS, HOLD_ENDS_S), (DELETING, 10 * DELETING_ENDS_S)):
            self.bucket.delete([found.name for found in self.bucket.list(folder) if now - found.modified > kept_s])

    def _now(self) -> float:
        """By the storage's clock: those of coordinators may be apart."""
        self.bucket.put(CLOCK, b"")
        found = self.bucket.find(CLOCK)
        return found.modified if found else time.time()

    def _found(self, digest: str) -> Found:
        if (found := self.bucket.find(_name(digest))) is None:
            raise BlobMissing(f"no blob {digest}", digest=digest)
        return found


def _name(digest: str) -> str:
    return f"{BLOBS}/{digest[:2]}/{digest}"


def _is_of(written: float, marks: list[Found], blob: Found) -> bool:
    """Whether a blob still is as it was listed with that time. Some storages list thousandths of a second, and say of one object the second alone."""
    if marks:
        return written == max(map(_marked, marks))
    return written == blob.modified or (blob.modified.is_integer() and abs(written - blob.modified) < 1)


def _marked(mark: Found) -> float:
    """The time that a mark stands for: its second, and of that a part by its name."""
    return int(mark.modified) + int(mark.name.rpartition("/")[2], 16) / 65536


class ObjectBlobWriter(BlobFile):
    """On this machine's disk, with the copies; uploads at the end."""

    def __init__(self, store: ObjectBlobStore, path: Path) -> None:
        super().__init__(path, path.parent)
        self._store = store

    def publish(self, digest: str) -> None:
        with full_disk_told(self._place, self.size):
            self._file.close()
        self._store.publish(self._path, digest)
