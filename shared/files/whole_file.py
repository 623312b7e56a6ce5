"""A file that is there whole, or not at all."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO


def write_whole(chunks: Iterable[bytes], target: Path) -> None:
    with whole(target) as file:
        for chunk in chunks:
            file.write(chunk)


@contextlib.contextmanager
def whole(target: Path) -> Iterator[BinaryIO]:
    """A file that is `target` once all is written, and nothing before."""
    aside = target.with_name(target.name + ".part")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
