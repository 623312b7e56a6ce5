"""Knows which files hold the bytes of their digest, and hashes them again only where that may have changed."""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fedcybgd.shared.contract.digests import digest_of_file

AGAIN_S = 600.0
"""Seconds after which a file is hashed again though nothing says that it was changed: disks forget."""
TICK_S = 0.02
"""Two changes within a tick of the file system's clock leave the same time behind, so what was changed a moment ago is not remembered."""
REMEMBERED = 100_000

Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class _Known:
    digest: str
    identity: Identity
    at: float


class Verifier:
    """Hashes each file once, for as long as its inode, size and times of change stay what they were. Threads may share one."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def is_whole(self, path: Path, digest: str) -> bool:
        """Whether the file at `path` has this digest; none there is an OSError."""
        place, before = str(path), _identity(path)
        with self._lock:
            known = self._known.get(place)
        if known is not None and (known.digest, known.identity) == (digest, before) and time.monotonic() - known.at < AGAIN_S:
            return True
        whole = digest_of_file(path) == digest
        with self._lock:
            self._known.pop(place, None)
            if whole and _identity(path) == before and time.time() - before[4] / 1e9 > TICK_S:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[place] = _Known(digest, before, time.monotonic())
        return whole

    def used(self, path: Path) -> None:
        """Set the file's times to now, and go on knowing it."""
        place, before = str(path), _identity(path)
        os.utime(path)
        with self._lock:
            known = self._known.get(place)
            if known is not None and known.identity == before:
                self._known[place] = _Known(known.digest, _identity(path), known.at)


def _identity(path: Path) -> Identity:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
