"""Two directories on different file systems: real ones where the machine has them, and ones between which every rename fails as there."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

MEMORY = Path("/dev/shm")


@contextmanager
def two_volumes(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """`kind`: "real" or "simulated"."""
    one, other = folder / "one", folder / "other"
    one.mkdir()
    if kind == "real":
        if not MEMORY.is_dir() or MEMORY.stat().st_dev == folder.stat().st_dev:
            pytest.skip("this machine has no second file system to write to")
        other = Path(tempfile.mkdtemp(dir=MEMORY))
        yield one, other
        shutil.rmtree(other, ignore_errors=True)
        return
    other.mkdir()
    for name in ("rename", "replace", "link"):
        monkeypatch.setattr(os, name, _within(one, other, getattr(os, name)))
    yield one, other


def _within(one: Path, other: Path, call: Any) -> Any:
    def side(path: Any) -> bool:
        return Path(path).parent.resolve().is_relative_to(other)

    def checked(source: Any, target: Any, *args: Any, **more: Any) -> Any:
        if side(source) != side(target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))
        return call(source, target, *args, **more)

    return checked


@contextmanager
def small_volume(folder: Path, size: int) -> Iterator[Path]:
    """A file system of its own with so many bytes; a test that needs one is skipped where this user may not make it."""
    place = folder / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(volume: Path) -> Path:
    """Take all the space that is left; deleting the file gives it back."""
    ballast = volume / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for chunk in (1 << 16, 4096):
            with suppress(OSError):
                while file.write(b"\0" * chunk) == chunk:
                    pass
    return ballast
