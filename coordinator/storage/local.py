"""Keeps blobs as files in a directory, named by their digest."""

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from coordinator.storage import scratch
from coordinator.storage.base import BlobCorrupt, BlobMissing, StoreFull
from shared.digests import digest_of_file
from shared.volumes import move

ASIDE = ".part"
LEFTOVER_AFTER_S = 86_400
"""Age at which a file aside has no writer any more: a killed process left it."""


class LocalBlobStore:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._aside = root / "incoming"
        self._aside.mkdir(parents=True, exist_ok=True)
        self._sweep_aside()

    def has(self, digest: str) -> bool:
        return self._place(digest).is_file()

    def size(self, digest: str) -> int:
        return self.path(digest).stat().st_size

    def path(self, digest: str) -> Path:
        place = self._place(digest)
        if not place.is_file():
            raise BlobMissing(f"no blob {digest}", digest=digest)
        return place

    def writer(self) -> "LocalBlobWriter":
        return LocalBlobWriter(self, self._aside / f"{secrets.token_hex(8)}{ASIDE}")

    def adopt(self, path: Path, digest: str) -> None:
        actual = digest_of_file(path)
        if actual != digest:
            raise BlobCorrupt(f"the bytes have digest {actual}, not {digest}", expected=digest, actual=actual)
        with _full_disk_told(), path.open("rb") as file:
            os.fsync(file.fileno())
            os.utime(path)  # as young as any blob just written: its last byte may have arrived long ago
            self.publish(path, digest)

    def stored(self) -> Iterator[tuple[str, float]]:
        for path in self._root.glob("??/*"):
            if path.suffix == ASIDE:
                continue
            try:
                yield path.name, path.stat().st_mtime
            except FileNotFoundError:
                continue  # deleted meanwhile

    def delete(self, digest: str, written: float | None = None) -> bool:
        """A blob may be written anew at any moment. So its file is taken away first, and put back if it is not the one that was meant."""
        place, away = self._place(digest), self._aside / f"{secrets.token_hex(8)}{ASIDE}"
        try:
            place.replace(away)
            if written is not None and away.stat().st_mtime != written:
                os.link(away, place)
                return False
            return True
        except FileNotFoundError:
            return False
        except FileExistsError:
            return False  # written once more
        finally:
            away.unlink(missing_ok=True)

    def touch(self, digest: str) -> None:
        try:
            os.utime(self._place(digest))
        except FileNotFoundError:
            raise BlobMissing(f"no blob {digest}", digest=digest) from None

    @contextmanager
    def hold(self) -> Iterator[None]:
        with scratch.folder(self._aside, scratch.HOLD):
            yield

    def is_held(self) -> bool:
        return scratch.is_any_held(self._aside, scratch.HOLD)

    def publish(self, path: Path, digest: str) -> None:
        """Move a finished, synced file to its place, so that no reader ever sees half of a blob."""
        place = self._place(digest)
        place.parent.mkdir(exist_ok=True)
        move(path, place)
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def scratch(self) -> AbstractContextManager[Path]:
        return scratch.folder(self._aside)

    def sweep(self) -> None:
        self._sweep_aside()
        for path in self._root.glob(f"??/*{ASIDE}"):
            _delete_leftover(path)

    def _sweep_aside(self) -> None:
        scratch.clear(self._aside)
        for path in self._aside.glob(f"*{ASIDE}"):
            _delete_leftover(path)

    def _place(self, digest: str) -> Path:
        return self._root / digest[:2] / digest


def _delete_leftover(path: Path) -> None:
    try:
        if time.time() - path.stat().st_mtime > LEFTOVER_AFTER_S:
            path.unlink()
    except FileNotFoundError:
        pass  # its writer has just finished


class LocalBlobWriter:
    """Writes aside while it hashes; syncs and renames at the end."""

    def __init__(self, store: LocalBlobStore, path: Path) -> None:
        self.digest = ""
        self.size = 0
        self._store, self._path, self._hash = store, path, hashlib.sha256()
        with _full_disk_told():
            self._file = path.open("wb")

    def write(self, data: bytes | memoryview) -> None:
        with _full_disk_told():
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                with _full_disk_told():
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._file.close()
                    self._store.publish(self._path, self._hash.hexdigest())
                self.digest = self._hash.hexdigest()
        finally:
            try:
                self._file.close()
            except OSError:
                pass  # the error that matters is on its way
            self._path.unlink(missing_ok=True)


@contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("the coordinator's disk is full; nothing was lost, free space and try again") from error
        raise
