"""Shards by digest on the agent's disk, bounded in size; a transfer that was cut goes on where it stopped."""

import errno
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

from fedcybgd.agent.errors import Unreachable, VisitFailed
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.files.paths import inside
from fedcybgd.shared.files.verified import Verifier
from fedcybgd.shared.files.volumes import move
from fedcybgd.shared.host.bodies import plain_chunks

log = logging.getLogger("fedagent.cache")
Fetch = Callable[[int], AbstractContextManager[httpx.Response]]


class ShardCache:
    """Least recently used shards go first when there is no room; those of the visit at hand are never dropped."""

    def __init__(self, root: Path, limit: int) -> None:
        self._root = root
        self._limit = limit
        self._pinned: set[str] = set()
        self._verifier = Verifier()
        root.mkdir(parents=True, exist_ok=True)
        self.bytes_fetched = 0
        """Body bytes that came over the wire since the last call of `pin`."""

    def pin(self, refs: Iterable[tuple[str, int]]) -> None:
        """Hold these (digest, size) until the next call; raises `VisitFailed` when they do not fit in the limit."""
        wanted = dict(refs)
        self._pinned = set(wanted)
        self.bytes_fetched = 0
        if sum(wanted.values()) > self._limit:
            raise VisitFailed(
                "disk_limit",
                f"this visit needs {sum(wanted.values()) / 1e9:.2f} GB of shards, limits.disk_gb allows {self._limit / 1e9:.2f}; raise it",
            )

    def path(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        return inside(self._root, digest)

    def has(self, digest: str) -> bool:
        """Whether the blob is there, and whole: one that is damaged is thrown away."""
        path = self.path(digest)
        try:
            if self._verifier.is_whole(path, digest):
                return True
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error)
        log.warning("%s is damaged and thrown away; it is fetched again", path)
        path.unlink(missing_ok=True)
        return False

    def adopt(self, path: Path, digest: str) -> None:
        """Move a file in that was made here and is known by its digest."""
        self.make_room(digest, path.stat().st_size)
        move(path, self.path(digest))

    def drop(self, digests: Iterable[str]) -> None:
        """Forget blobs; what is not there is no error."""
        for digest in digests:
            self.path(digest).unlink(missing_ok=True)

    def get(self, digest: str, size: int, fetch: Fetch) -> Path:
        """The verified file of a shard, fetched if it is not there.

        Raises `Unreachable` when the transfer is cut (what arrived is kept), `VisitFailed` when the disk is full or when the bytes
        are wrong (nothing is kept).
        """
        path = self.path(digest)
        if self.has(digest):
            self._verifier.used(path)
            return path
        part = inside(self._root, f"{digest}.part")
        self.make_room(digest, size)
        try:
            self._receive(part, size, fetch)
            if part.stat().st_size < size:
                raise Unreachable(f"the transfer of {digest[:12]} ended early")
            if digest_of_file(part) != digest:
                part.unlink()
                raise VisitFailed("shard_corrupt", f"shard {digest[:12]} arrived damaged and was thrown away")
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise VisitFailed("disk_full", f"the disk of {self._root} is full; free space, or lower limits.disk_gb") from error
            raise
        return path

    def _receive(self, part: Path, size: int, fetch: Fetch) -> None:
        have = part.stat().st_size if part.exists() else 0
        if have > size:
            part.unlink()
            have = 0
        if have == size:
            return
        with fetch(have) as answer:
            if answer.status_code == 416:
                part.unlink(missing_ok=True)
                raise Unreachable("the coordinator has fewer bytes than arrived; starting over")
            have = have if answer.status_code == 206 else 0
            with part.open("ab" if have else "wb") as file:
                # As they come: chunks of a fixed size would lose what arrived before a cut.
                for chunk in plain_chunks(answer.iter_raw(), answer.headers.get("content-encoding", "")):
                    self.bytes_fetched += len(chunk)
                    have += len(chunk)
                    file.write(chunk[: len(chunk) - max(0, have - size)])
                    if have > size:
                        break
        if have > size:
            part.unlink()
            raise VisitFailed("shard_corrupt", f"shard {part.stem[:12]} has more bytes than the {size} that were announced")

    def make_room(self, digest: str, size: int) -> None:
        """Drop what was used longest ago until the `size` bytes of a shard fit; what arrived of it takes part of its own room."""
        others = (f for f in self._root.iterdir() if f.is_file() and f.name.removesuffix(".part") != digest)
        files = sorted(others, key=lambda f: f.stat().st_mtime)
        used = sum(f.stat().st_size for f in files)
        for file in files:
            if used + size <= self._limit:
                return
            if file.name.removesuffix(".part") not in self._pinned:
                used -= file.stat().st_size
                file.unlink()

    def size(self) -> int:
        return sum(f.stat().st_size for f in self._root.iterdir() if f.is_file())
