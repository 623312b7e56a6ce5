"""Copies of blobs on this machine's disk, bounded in bytes: who was used longest ago goes first. Processes may share one."""

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedcybgd.coordinator.storage import scratch
from fedcybgd.coordinator.storage.full import full_disk_told
from fedcybgd.coordinator.storage.local import ASIDE, LEFTOVER_AFTER_S, VERIFIER
from fedcybgd.shared.files.volumes import move

USED_EVERY_S = 60.0
"""A file's time is that of its last use, roughly: with each change of it other processes would hash it again."""
LOCKS = "locks"


class WrongBytes(Exception):
    """What was fetched has another digest."""


class BlobCache:
    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self.aside = folder / "incoming"
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        self.aside.mkdir(exist_ok=True)

    def new_file(self) -> Path:
        """A place for what is not known yet by its digest."""
        return self.aside / f"{secrets.token_hex(8)}{ASIDE}"

    @contextmanager
    def localised(self, digest: str, fetch: Callable[[], Iterable[memoryview]]) -> Iterator[Path]:
        """The file of a blob, checked, fetched where it is not here; it stays until the end of the block. Raises `WrongBytes`."""
        while (held := self._hold(digest)) is None:
            with self._alone(digest):
                if not self._place(digest).exists():
                    self._fetch(digest, fetch)
        try:
            yield self._place(digest)
        finally:
            os.close(held)

    def adopt(self, path: Path, digest: str) -> None:
        """Keep a file whose digest is known, in place of what may be here."""
        self._make_room(path.stat().st_size)
        place = self._place(digest)
        place.parent.mkdir(exist_ok=True)
        os.utime(path)
        move(path, place)

    def drop(self, digest: str) -> None:
        self._place(digest).unlink(missing_ok=True)

    def sweep(self) -> None:
        scratch.clear(self.aside)
        for path in self.aside.glob(f"*{ASIDE}"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > LEFTOVER_AFTER_S:
                    path.unlink()

    def _hold(self, digest: str) -> int | None:
        """A lock under which the file stays; None: it is not here, or damaged, and then it is thrown away."""
        place = self._place(digest)
        try:
            held = os.open(place, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(held, fcntl.LOCK_SH)
            found = place.stat()
            if found.st_ino == os.fstat(held).st_ino:  # else it was deleted before it was locked
                if VERIFIER.is_whole(place, digest):
                    if time.time() - found.st_mtime > USED_EVERY_S:
                        VERIFIER.used(place)
                    return held
                place.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        except OSError:  # it cannot be read
            place.unlink(missing_ok=True)
        os.close(held)
        return None

    def _fetch(self, digest: str, fetch: Callable[[], Iterable[memoryview]]) -> None:
        part, hashed, size = self.new_file(), hashlib.sha256(), 0
        try:
            with full_disk_told(self._folder, 1), part.open("wb") as file:
                for chunk in fetch():
                    file.write(chunk)
                    hashed.update(chunk)
                    size += len(chunk)
            if hashed.hexdigest() != digest:
                raise WrongBytes(f"{size} bytes have the digest {hashed.hexdigest()}")
            self.adopt(part, digest)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        found = sorted(self._files())
        used = sum(kept for _, kept, _ in found)
        for _, kept, path in found:
            if used + size <= self._limit:
                return
            if _unused(path):
                used -= kept

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each was used, its bytes, and where it is."""
        for path in self._folder.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path

    def _place(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    @contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        """Nobody else fetches it meanwhile."""
        lock = os.open(self._folder / LOCKS / digest[:2], os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _unused(path: Path) -> bool:
    """Delete a file that nobody reads; whether it went."""
    try:
        asking = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(asking, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(asking)
