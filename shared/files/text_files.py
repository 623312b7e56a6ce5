"""Opens text files of any encoding and gives their lines, each of bounded length."""

import codecs
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from fedcybgd.shared.contract.errors import DataError

LONGEST_ROW = 1 << 24
"""Characters of a line or a field at the most: whoever has a larger one has no rows but a file in a row."""
LARGEST_RATIO = 200
"""Times its size that a packed file may unpack to; text packs ten times, and an archive made to fill a memory a thousand times."""
RATIO_FROM = 1 << 28
"""Characters from which the ratio is looked at: small files of one repeated row are no danger."""
UNDECODABLE = "\udcff"
"""Stands for a byte that means nothing in the file's encoding, until the row that it is in is refused. No encoding gives it."""

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def _undecodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return UNDECODABLE, error.end


codecs.register_error("fedcybgd.undecodable", _undecodable)


def encoding_of(path: Path, wanted: str | None = None) -> str:
    """The encoding in which to read `path`: as its byte-order mark says, else as `wanted`, else UTF-8.

    Raises `DataError` where mark and `wanted` contradict each other.
    """
    with _open(path) as file:
        start = file.read(4)
    marked = next((name for mark, name in MARKS if start.startswith(mark)), None)
    if marked is None:
        return wanted or "utf-8"
    family = marked.removesuffix("-sig")
    if wanted is not None and not wanted.replace("_", "-").startswith(family):
        raise DataError(f"{path.name} begins with the byte-order mark of {family}, but `encoding` says {wanted}", path=str(path))
    return marked


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a file, their ends kept as they are; bytes that mean nothing in `encoding` come out as `UNDECODABLE`.

    Raises `DataError` for a line that is too long, and for an archive that was made to fill a memory.
    """
    total, size = 0, path.stat().st_size
    packed = path.suffix.lower() == ".gz"
    with io.TextIOWrapper(_open(path), encoding=encoding, errors="fedcybgd.undecodable", newline="") as file:
        number = 0
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            total += len(line)
            if len(line) > LONGEST_ROW:
                raise DataError(
                    f"{path.name} line {number} is longer than {LONGEST_ROW:,} characters: is it a file of rows?",
                    path=str(path),
                    line=number,
                )
            if packed and total > RATIO_FROM and total > LARGEST_RATIO * size:
                raise DataError(f"{path.name} unpacks to more than {LARGEST_RATIO} times its size; unpack it yourself, if it is meant so")
            yield line
