"""Moves files, also from one file system to another: directories of one home may lie on different volumes."""

import errno
import os
import secrets
import shutil
from pathlib import Path

CHUNK = 1 << 20


def settle(folder: Path) -> None:
    """Have the names of a folder outlast a power cut, as its files do that were synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename `source`, or copy it where a rename cannot reach: `target` is whole, or as it was, and then `source` is still there."""
    try:
        source.replace(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    aside = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        with source.open("rb") as reading, aside.open("wb") as writing:
            shutil.copyfileobj(reading, writing, CHUNK)
            writing.flush()
            os.fsync(writing.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    source.unlink(missing_ok=True)
