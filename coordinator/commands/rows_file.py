"""A file of JSON Lines that a command writes: it is there once all is in it, or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fedcybgd.client.errors import FileUnusable
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.shared.contract.words import JsonObject


class FileThere(Invalid):
    code = "file_there"


class RowsFile(Protocol):
    def write(self, row: JsonObject, /) -> None: ...


class Nowhere:
    """For whoever wants no file."""

    def write(self, row: JsonObject) -> None: ...


class JsonLines:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, row: JsonObject) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


def check_free(path: Path, force: bool) -> None:
    """Raises `FileThere`."""
    if path.exists() and not force:
        raise FileThere(f"{path} is there already; choose another with --out, or give --force to write over it")


@contextmanager
def rows_file(path: Path | None, force: bool) -> Iterator[RowsFile]:
    """Raises `FileThere`, `FileUnusable`."""
    if path is None:
        yield Nowhere()
        return
    check_free(path, force)
    aside = path.with_name(f".{path.name}.part")
    try:
        lines = JsonLines(aside)
        try:
            yield lines
        finally:
            lines.close()
        aside.replace(path)
    except OSError as error:
        raise FileUnusable(f"{path}: {error.strerror or error}; choose another file") from error
    finally:
        aside.unlink(missing_ok=True)
