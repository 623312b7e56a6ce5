"""Keeps uploads as files in a directory beside the blobs. Its locks are the system's, so it may be several processes'."""

import fcntl
import os
import re
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedcybgd.coordinator.storage.base import EngineStore
from fedcybgd.coordinator.storage.full import full_disk_told
from fedcybgd.coordinator.storage.uploads import BeingChecked, Elsewhere, NothingArrived, UploadKey

PART, TAKEN, KEPT = ".part", ".taken", ".kept"
"""What arrives; what is being checked, locked by who does it; and that a blob came of it, of no bytes."""
KEY = re.compile(r"[A-Za-z0-9_]+-[A-Za-z0-9_]+-[0-9a-f]{64}")
LOCKS = 64
"""Files whose locks places share: they are never deleted, so that nobody waits for one that is gone."""
WAIT_S, LOOK_EVERY_S = 30.0, 0.02


class LocalUploads:
    best_piece = 1 << 20

    def __init__(self, folder: Path, store: EngineStore) -> None:
        self._folder, self._store = folder, store

    def offset(self, key: UploadKey) -> int:
        with self._alone(key.place):
            _put_back(self._file(key, PART), self._file(key, TAKEN))
            return max(_size(self._file(key, PART)), _size(self._file(key, TAKEN)))

    def is_kept(self, key: UploadKey) -> bool:
        with self._alone(key.place):
            # While it is checked, and after somebody died who checked it, the note is none yet.
            checked = not self._file(key, PART).exists() and not self._file(key, TAKEN).exists()
            return checked and self._file(key, KEPT).exists()

    def append(self, key: UploadKey, at: int, data: bytes, may: Callable[[], None]) -> None:
        part, taken = self._file(key, PART), self._file(key, TAKEN)
        with self._alone(key.place):
            may()
            _put_back(part, taken)
            if taken.exists():
                raise Elsewhere(_size(taken))
            if at > (size := _size(part)):
                raise Elsewhere(size)
            if not part.exists():
                for path in self._folder.glob(f"{key.place}-*"):
                    path.unlink(missing_ok=True)
            with full_disk_told(self._folder, len(data)), os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.seek(at)
                file.write(data)

    @contextmanager
    def take(self, key: UploadKey) -> Iterator["LocalTaken"]:
        part, taken = self._file(key, PART), self._file(key, TAKEN)
        held = self._hold(key)
        try:
            yield LocalTaken(self._store, key.digest, taken, self._file(key, KEPT))
        finally:
            with self._alone(key.place):
                os.close(held)
                _put_back(part, taken)

    def _hold(self, key: UploadKey) -> int:
        """The lock of what was moved away; the system gives it back when this process ends."""
        part, taken = self._file(key, PART), self._file(key, TAKEN)
        until = time.monotonic() + WAIT_S
        while True:
            with self._alone(key.place):
                _put_back(part, taken)
                if not taken.exists():
                    if not part.exists():
                        raise NothingArrived(key)
                    part.rename(taken)
                    held = os.open(taken, os.O_RDONLY)
                    fcntl.flock(held, fcntl.LOCK_EX)
                    return held
            if time.monotonic() > until:
                raise BeingChecked(key)
            time.sleep(LOOK_EVERY_S)

    def discard(self, key: UploadKey) -> None:
        with self._alone(key.place):
            for suffix in (PART, TAKEN, KEPT):
                self._file(key, suffix).unlink(missing_ok=True)

    def keys(self) -> Collection[UploadKey]:
        return {UploadKey(*path.stem.split("-")) for path in self._files()}

    def sweep(self, older_than_s: float) -> None:
        for path in self._files():
            try:
                if time.time() - path.stat().st_mtime > older_than_s:
                    path.unlink()
            except FileNotFoundError:
                continue  # submitted meanwhile

    def _files(self) -> Iterator[Path]:
        return (path for path in self._folder.glob("*-*") if path.suffix in (PART, TAKEN, KEPT) and KEY.fullmatch(path.stem))

    def _file(self, key: UploadKey, suffix: str) -> Path:
        name = "-".join(key)
        assert KEY.fullmatch(name)
        return self._folder / f"{name}{suffix}"

    @contextmanager
    def _alone(self, place: str) -> Iterator[None]:
        """Nobody else looks after the files of a place meanwhile; it is for moments, not for reading through a file."""
        locks = self._folder / "locks"
        with full_disk_told(self._folder, 1):
            locks.mkdir(parents=True, exist_ok=True)
            lock = os.open(locks / f"{zlib.crc32(place.encode()) % LOCKS:02}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


class LocalTaken:
    def __init__(self, store: EngineStore, digest: str, path: Path, kept: Path) -> None:
        self._store, self._digest, self._path, self._kept = store, digest, path, kept

    def open(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except FileNotFoundError:
            raise NothingArrived(self._path.name) from None

    def keep(self) -> None:
        # Noted first: were the process to die between the two, what is put back is checked again; a blob without a note would be lost.
        with full_disk_told(self._kept.parent, 1):
            self._kept.touch()
        try:
            self._store.adopt(self._path, self._digest)
        except BaseException as error:
            self._kept.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                raise NothingArrived(self._path.name) from None
            raise

    def drop(self) -> None:
        self._path.unlink(missing_ok=True)


def _put_back(part: Path, taken: Path) -> None:
    """What somebody took who is not there any more, and who did neither keep nor drop it, has arrived as before."""
    try:
        look = os.open(taken, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(look, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken.rename(part)
    except BlockingIOError:
        pass  # it is being checked
    finally:
        os.close(look)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
