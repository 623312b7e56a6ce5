"""This machine has nothing to give for now, a full disk mostly: the agent pauses, says so, and goes on by itself."""

import errno
import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedcybgd.shared.files.disk import FULL, says_full
from fedcybgd.shared.host.exhausted import says_exhausted

FIRST_S, LONGEST_S = 5.0, 1800.0
LOOK_EVERY_S = 5.0
ROOM = 16 << 20
"""Bytes that somebody must have freed to be tried with at once."""


def is_short(error: BaseException) -> bool:
    """Whether an error passes once this machine has more to give: space, open files, memory, processes."""
    return says_full(error) or says_exhausted(error)


def what_is_short(error: BaseException) -> str:
    """In a line, for the owner."""
    if says_full(error):
        return f"a disk is full ({error}); free space, or lower limits.disk_gb. The agent waits and goes on by itself"
    return f"this machine has nothing to give ({str(error) or type(error).__name__}). The agent waits and goes on by itself"


class Shortage:
    """Waits longer with every failure in a row, and goes on at once where space was freed meanwhile."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._failures = 0

    def over(self) -> None:
        self._failures = 0

    def wait(self, pause: Callable[[float], None]) -> None:
        """`pause` waits so many seconds, and may raise to end the waiting."""
        left = min(LONGEST_S, FIRST_S * 2.0 ** min(self._failures, 30)) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
        self._failures += 1
        before = self._free()
        while left > 0:
            pause(min(left, LOOK_EVERY_S))
            left -= LOOK_EVERY_S
            if self._free() - before >= ROOM:
                return

    def _free(self) -> int:
        try:
            return shutil.disk_usage(self._place).free
        except OSError:
            return 0


def write_status(path: Path, status: Mapping[str, Any]) -> None:
    """Replace the status as a whole; on a full disk write it over the old one, whose block it fits in. Raises `OSError` else."""
    aside, text = path.with_suffix(".part"), json.dumps(status)
    try:
        aside.write_text(text)
        aside.replace(path)
    except OSError as error:
        if error.errno not in FULL | {errno.EMFILE, errno.ENFILE}:
            raise
        aside.unlink(missing_ok=True)
        with path.open("r+") as file:
            file.write(text)
            file.truncate()
