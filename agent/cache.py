"""Shards by digest on the agent's disk, bounded in size; a transfer that was cut goes on where it stopped."""

import errno
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import httpx

from fedcybgd.agent.errors import Unreachable, VisitFailed
from fedcybgd.agent.policy import PolicyRefused
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.sizes import in_units
from fedcybgd.shared.files.paths import inside
from fedcybgd.shared.files.verified import Verifier
from fedcybgd.shared.files.volumes import move
from fedcybgd.shared.host.bodies import plain_chunks

log = logging.getLogger("fedagent.cache")
RANGE = re.compile(r"bytes ([0-9]{1,18})-")
Fetch = Callable[[int], AbstractContextManager[httpx.Response]]


class ShardCache:
    """Least recently used shards go first when there is no room; those of the visit at hand are never dropped.

    Several threads may use one, each for another shard.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self._root = root
        self._limit = self._room = limit
        self._needed = 0
        self._beside: Callable[[int], int] = lambda _: 0
        self._pinned: set[str] = set()
        self._found: dict[str, _Found] | None = None
        self._verifier = Verifier()
        self._lock = threading.RLock()
        root.mkdir(parents=True, exist_ok=True)
        self.bytes_fetched = 0
        """Body bytes that came over the wire since the last call of `pin`."""
        self.fetched_in_all = 0
        """The same since the start."""
        self._seconds_left = self._seconds = math.inf

    @property
    def limit(self) -> int:
        return self._limit

    def share(self, beside: Callable[[int], int]) -> None:
        """What shares the limit: told how many bytes it may take, it makes room and says how many it has left."""
        self._beside = beside

    def pin(self, refs: Iterable[tuple[str, int]], seconds: float = math.inf) -> None:
        """Hold these (digest, size) until the next call; raises `VisitFailed` when they do not fit in the limit.

        `seconds` is what all transfers until then may take.
        """
        wanted = dict(refs)
        with self._lock:
            self._pinned = set(wanted)
            self._found = None  # the training process makes shards too
            self.bytes_fetched = 0
            self._seconds_left = self._seconds = seconds
            self._needed = sum(wanted.values())
            self._room = self._limit - self._beside(self._limit - self._needed)
            self._check_room("shards and residuals")

    @property
    def left(self) -> int:
        """Bytes within the limit that the visit at hand may have for something else."""
        return self._room - self._needed

    def reserve(self, size: int, what: str) -> None:
        """Leave room for `what` until the next `pin`; raises as that does."""
        self._room -= size
        self._check_room(f"shards, residuals and {what}")

    def _check_room(self, what: str) -> None:
        if self._needed > self._room:
            wanted = self._limit - self._room + self._needed
            raise VisitFailed(
                "disk_limit", f"this visit needs {in_units(wanted)} of {what}, limits.disk_gb allows {in_units(self._limit)}; raise it"
            )

    def path(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        return inside(self._root, digest)

    def part(self, digest: str) -> Path:
        """Where what has arrived of a blob is, or would be."""
        return inside(self._root, f"{digest}.part")

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
        self._delete(digest)
        return False

    def use(self, digest: str) -> Path | None:
        """The verified file of a blob that is there: as one that was used last, it goes last."""
        if not self.has(digest):
            return None
        path = self.path(digest)
        self._verifier.used(path)
        self._note(digest, path.stat().st_size)
        return path

    def adopt(self, path: Path, digest: str) -> None:
        """Move a file in that was made here and is known by its digest."""
        self.make_room(digest, path.stat().st_size)
        move(path, self.path(digest))

    def drop(self, digests: Iterable[str]) -> None:
        """Forget blobs; what is not there is no error."""
        for digest in digests:
            self._delete(digest)

    def get(self, digest: str, size: int, fetch: Fetch) -> Path:
        """The verified file of a shard, fetched if it is not there.

        Raises `Unreachable` when the transfer is cut (what arrived is kept), `VisitFailed` when the disk is full or when the bytes
        are wrong (nothing is kept). Where they are wrong and some had arrived before, those may have been spoilt here: all are had once more.
        """
        if (there := self.use(digest)) is not None:
            return there
        path, part = self.path(digest), self.part(digest)
        self.make_room(digest, size)
        try:
            if self._receive(part, size, fetch) and not _is(part, size, digest):
                log.warning("what had arrived of shard %s before is damaged and thrown away; it is fetched anew", digest[:12])
                self._receive(part, size, fetch)
            if not _is(part, size, digest):
                raise VisitFailed("shard_corrupt", f"shard {digest[:12]} arrived damaged and was thrown away")
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise VisitFailed("disk_full", f"the disk of {self._root} is full; free space, or lower limits.disk_gb") from error
            raise
        return path

    def _receive(self, part: Path, size: int, fetch: Fetch) -> bool:
        """Have the bytes that are lacking; whether some were there before."""
        have = part.stat().st_size if part.exists() else 0
        if have > size:
            part.unlink()
            have = 0
        if have == size:
            part.touch()  # of an empty file nothing is fetched
            return have > 0
        with fetch(have) as answer:
            if answer.status_code == 416:
                part.unlink(missing_ok=True)
                raise Unreachable("the coordinator has fewer bytes than arrived; starting over")
            resumed = have = _goes_on(part, have, answer)
            with part.open("ab" if have else "wb") as file:
                # As they come: chunks of a fixed size would lose what arrived before a cut.
                last = time.monotonic()
                for chunk in plain_chunks(answer.iter_raw(), answer.headers.get("content-encoding", "")):
                    self.bytes_fetched += len(chunk)
                    self.fetched_in_all += len(chunk)
                    have += len(chunk)
                    file.write(chunk[: len(chunk) - max(0, have - size)])
                    file.flush()  # what arrived outlasts this process
                    if have > size:
                        break
                    last = self._spend(last)
        if have > size:
            part.unlink()
            if resumed:  # by something on the way that does not know how: from the start it may be as it should
                raise Unreachable(f"more bytes came of {part.stem[:12]} than were lacking; starting over")
            raise VisitFailed("shard_corrupt", f"shard {part.stem[:12]} has more bytes than the {size} that were announced")
        return resumed > 0

    def _spend(self, since: float) -> float:
        """Count the time that a transfer takes, and only that: an outage is nobody's. Raises `PolicyRefused`; what is it now."""
        now = time.monotonic()
        self._seconds_left -= now - since
        if self._seconds_left < 0:
            raise PolicyRefused("most.seconds", f"fetching took longer than {self._seconds:g} s", f"{self._seconds:g}")
        return now

    def make_room(self, digest: str, size: int) -> None:
        """Drop what was used longest ago until the `size` bytes of a shard fit; what arrived of it takes part of its own room."""
        with self._lock:
            files = self._files()
            used = sum(found.size for name, found in files.items() if _of(name) != digest)
            if used + size > self._room:
                for name in sorted(files, key=lambda name: files[name].used):
                    if used + size <= self._room:
                        break
                    if _of(name) not in self._pinned | {digest}:
                        used -= files[name].size
                        self._delete(name)
            self._note(digest, size)

    def size(self) -> int:
        return sum(f.stat().st_size for f in self._root.iterdir() if f.is_file())

    def _files(self) -> "dict[str, _Found]":
        """What lies here, by name: looked for once a visit, and kept up to date since."""
        if self._found is None:
            with os.scandir(self._root) as entries:
                seen = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries if entry.is_file(follow_symlinks=False)]
            self._found = {name: _Found(stat.st_size, stat.st_mtime) for name, stat in seen}
        return self._found

    def _note(self, digest: str, size: int) -> None:
        with self._lock:
            files = self._files()
            files.pop(f"{digest}.part", None)
            files[digest] = _Found(size, time.time())

    def _delete(self, name: str) -> None:
        with self._lock:
            inside(self._root, name).unlink(missing_ok=True)
            if self._found is not None:
                self._found.pop(name, None)


class _Found(NamedTuple):
    size: int
    used: float


def _of(name: str) -> str:
    """Of which blob a file here is, or is to be."""
    return name.removesuffix(".part")


def _goes_on(part: Path, have: int, answer: httpx.Response) -> int:
    """From where on an answer brings bytes, of which `have` are there: what a proxy sends may not be the range that was asked for."""
    said = RANGE.match(answer.headers.get("content-range", ""))
    if answer.status_code != 206 and said is None:
        return 0
    begin = have if said is None else int(said[1])
    if begin > have:
        part.unlink(missing_ok=True)
        raise Unreachable(f"bytes from {begin} on came where {have} had arrived; starting over")
    if begin < have:
        os.truncate(part, begin)
    return begin


def _is(part: Path, size: int, digest: str) -> bool:
    """Whether what arrived has the digest; it is thrown away if not. Raises `Unreachable` while it is not all there."""
    if part.stat().st_size < size:
        raise Unreachable(f"the transfer of {digest[:12]} ended early")
    if digest_of_file(part) == digest:
        return True
    part.unlink()
    return False
