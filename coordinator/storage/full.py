"""Disks that are full: which, and how much is needed. Said once and then ever more rarely, and over as soon as there is room."""

import errno
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedcybgd.coordinator.storage.base import DiskTooSmall, NoRoomYet, StoreFull
from fedcybgd.shared.host.rarely import Rarely

log = logging.getLogger("fedcoord.disk")
LEAST = 1 << 20
"""Bytes below which no disk counts as free again."""


@contextmanager
def full_disk_told(place: Path, needed: int) -> Iterator[None]:
    """Have it raise `StoreFull` when what is written in `place`, so many bytes at least, does not fit."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise full(place, needed) from error


def full(place: Path, needed: int) -> StoreFull:
    return StoreFull(
        "the coordinator's disk is full; what arrived is kept and nothing was lost, try again later", place=str(place), needed=needed
    )


def check_room(place: Path, size: int) -> None:
    """Raises `NoRoomYet` where so many bytes do not fit into `place` at present, and `DiskTooSmall` where its whole disk has fewer."""
    if (total := _total(place)) < size:
        raise DiskTooSmall(f"{size:,} bytes are needed in {place}, and its whole disk has {total:,}", place=str(place), needed=size)
    if (free := _free(place)) < size:
        text = f"{size:,} bytes are needed in {place}, and {free:,} are free; it goes on by itself once there is room"
        raise NoRoomYet(text, place=str(place), needed=size)


@dataclass(frozen=True)
class News:
    """What an operator should know of a disk."""

    level: Literal["info", "warning", "error"]
    code: Literal["disk_full", "disk_free"]
    text: str
    begins: str
    """as all that is said of this disk does"""


class FullDisks:
    """What is known of them in this process. Threads may share one."""

    def __init__(self, default: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`default` is meant where it was not said which disk is full."""
        self._default, self._clock, self._lock = default, clock, threading.Lock()
        self._needed: dict[Path, int] = {}
        self._news: list[News] = []
        self._rarely: dict[Path, Rarely] = {}
        self._said: set[Path] = set()
        """of which it was said that they are full, and not yet that they are not"""

    @property
    def names(self) -> list[str]:
        """Of the folders whose disks are full."""
        with self._lock:
            return sorted({place.name for place in self._needed})

    def say(self, error: StoreFull) -> None:
        """Somebody could not write, and tries again."""
        self.lack(Path(error.detail.get("place") or self._default), int(error.detail.get("needed") or LEAST))

    def lack(self, place: Path, needed: int = LEAST) -> None:
        text = f"the disk of {place} is full: {_free(place)} bytes are free, {needed} or more are needed; free space, then all goes on by itself"
        with self._lock:
            if due := self._rarely.setdefault(place, Rarely(self._clock)).is_due():
                log.error("%s", text)
            if due and place not in self._said:
                self._said.add(place)
                self._news.append(News("error", "disk_full", text, f"the disk of {place} "))
            self._needed[place] = max(needed, self._needed.get(place, 0))

    def look(self) -> list[News]:
        """What is new since it was `told`; disks that have room again are forgotten."""
        with self._lock:
            for place in [place for place, needed in self._needed.items() if _free(place) >= max(needed, LEAST)]:
                del self._needed[place]
                if place in self._said:
                    self._said.remove(place)
                    self._news.append(News("info", "disk_free", f"the disk of {place} has room again", f"the disk of {place} "))
                    log.warning("%s", self._news[-1].text)
            return list(self._news)

    def told(self, news: list[News]) -> None:
        with self._lock:
            self._news = [one for one in self._news if one not in news]


def _free(place: Path) -> int:
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _total(place: Path) -> int:
    return shutil.disk_usage(place).total
