"""A file that a command writes: it is there once all is in it, or not at all, and never in the place of another that nobody gave up."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Protocol, TextIO

import typer

from fedcybgd.client.errors import FileUnusable
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.shared.contract.words import JsonObject

Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]


class FileThere(Invalid):
    code = "file_there"


class RowsFile(Protocol):
    def write(self, row: JsonObject, /) -> None: ...


class Nowhere:
    """For whoever wants no file."""

    def write(self, row: JsonObject) -> None: ...


class JsonLines:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: JsonObject) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")


def check_free(path: Path, force: bool) -> None:
    """Raises `FileThere`."""
    if path.exists() and not force:
        raise FileThere(f"{path} is there already; choose another file, or give --force to write over it")


@contextmanager
def new_file(path: Path, force: bool) -> Iterator[TextIO]:
    """Raises `FileThere`, `FileUnusable`."""
    check_free(path, force)
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("w", newline="", encoding="utf-8") as file:
            yield file
        aside.replace(path)
    except OSError as error:
        raise FileUnusable(f"{path}: {error.strerror or error}; choose another file") from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def rows_file(path: Path | None, force: bool) -> Iterator[RowsFile]:
    """JSON Lines. Raises `FileThere`, `FileUnusable`."""
    if path is None:
        yield Nowhere()
        return
    with new_file(path, force) as file:
        yield JsonLines(file)
