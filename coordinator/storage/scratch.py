"""Directories for files aside: each belongs to a process, and is deleted when that has ended, however it ended."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "fedcoord-"
HOLD = f"{PREFIX}hold-"
YOUNG_S = 5
"""Age under which a directory may not have been locked yet by the process that made it."""


@contextmanager
def folder(root: Path, prefix: str = PREFIX) -> Iterator[Path]:
    """A new directory under `root`. Its lock is given back by the system when the process ends, so that `clear` knows it."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as made:
        held = os.open(made, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield Path(made)
        finally:
            os.close(held)


def clear(root: Path) -> None:
    """Delete the directories whose processes are gone."""
    for left in root.glob(f"{PREFIX}*"):
        try:
            if not _is_young(left) and not _is_held(left):
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # its process has just finished


def is_any_held(root: Path, prefix: str) -> bool:
    """Whether a process that has such a directory is at work; one that was made a moment ago counts."""
    for path in root.glob(f"{prefix}*"):
        try:
            if _is_young(path) or _is_held(path):
                return True
        except FileNotFoundError:
            continue  # its process has just finished
    return False


def _is_young(path: Path) -> bool:
    return time.time() - path.stat().st_mtime <= YOUNG_S


def _is_held(path: Path) -> bool:
    asking = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(asking, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(asking)
