"""The rows of CSV and JSON Lines files, one by one."""

import csv
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.files.table_format import TableFormat
from fedcybgd.shared.files.text_files import LONGEST_ROW, UNDECODABLE, encoding_of, lines

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
UNMARKED_SUFFIXES = (".tsv", ".tab")
ENOUGH = 64
"""Characters of a line in which UTF-16 that is read as UTF-8 shows"""
SAID = re.compile(r'"?sep=([^"\r\n])"?\s*')
"""What Excel writes above the heading, and hides."""


def csv_rows(path: Path, how: TableFormat) -> Iterator[dict[str, Any]]:
    """Rows as heading → text. Raises `DataError`, with the line, for what is no table."""
    encoding, separator, reader = _opened(path, how)
    heading = _heading(path, reader, encoding)
    for row in _told(reader, path, how):
        if not row:
            continue
        if len(row) != len(heading):
            raise DataError(
                f"{path.name} line {reader.line_num}: the row has not as many columns as the heading ({len(row)}, not {len(heading)}), "
                f"where {SEPARATORS.get(separator, repr(separator))} parts them",
                path=str(path), line=reader.line_num,
            )  # fmt: skip
        for column, value in zip(heading, row, strict=True):
            if UNDECODABLE in value:
                raise _undecodable(path, f"line {reader.line_num}, column {column!r}", encoding, line=reader.line_num, column=column)
        yield dict(zip(heading, row, strict=True))


def _told(reader: Any, path: Path, how: TableFormat) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        hint = "; where quotation marks are text like any other, set `quotes = false`" if how.quotes else ""
        raise DataError(
            f"{path.name} line {reader.line_num} cannot be read: {error}{hint}", path=str(path), line=reader.line_num
        ) from error


def csv_top(path: Path, how: TableFormat, most: int) -> tuple[list[str], list[list[str]]]:
    """The heading, and so many rows below it at the most, as they stand: whether they have as many columns is not asked."""
    encoding, _, reader = _opened(path, how)
    heading, rows = _heading(path, reader, encoding), list[list[str]]()
    with suppress(csv.Error):  # whoever reads the rows is told of it
        rows.extend(itertools.islice((row for row in reader if row), most))
    return heading, rows


def _opened(path: Path, how: TableFormat) -> tuple[str, str, Any]:
    """Encoding, separator, and the rows from the heading on."""
    encoding = encoding_of(path, how.encoding)
    separator = how.separator or separator_of(path, how)
    csv.field_size_limit(LONGEST_ROW)
    return encoding, separator, _reader(_table(path, encoding), separator, how)


def _table(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a file; one above the heading that only says the separator is an empty one."""
    for number, line in enumerate(lines(path, encoding)):
        yield line if number or not SAID.fullmatch(line) else "\n"


def _reader(source: Iterator[str], separator: str, how: TableFormat) -> Any:
    return csv.reader(source, delimiter=separator, strict=True, quoting=csv.QUOTE_MINIMAL if how.quotes else csv.QUOTE_NONE)


def _heading(path: Path, reader: Any, encoding: str) -> list[str]:
    heading: list[str] = next((row for row in reader if row), [])
    text = "".join(heading)
    if UNDECODABLE in text:
        raise _undecodable(path, "line 1", encoding, line=1)
    if "\0" in text:
        raise DataError(f"{path.name} has NUL characters in its heading: perhaps it is UTF-16; say so with `encoding`", path=str(path))
    if twice := sorted({name for name in heading if name and heading.count(name) > 1}):
        raise DataError(
            f"{path.name}: the heading names column {twice[0]!r} twice; if that is a row already, write the names of its columns above it",
            path=str(path),
            column=twice[0],
        )
    return heading


def _undecodable(path: Path, where: str, encoding: str, **detail: Any) -> DataError:
    name = encoding.removesuffix("-sig").upper()
    return DataError(
        f"{path.name} {where} cannot be read: it has bytes that mean nothing in {name}; "
        "set `encoding`, as in \"cp1252\" or \"utf-16\", or mend the file",
        path=str(path), **detail,
    )  # fmt: skip


def separator_of(path: Path, how: TableFormat) -> str:
    """What parts the columns of a CSV file whose owner does not say.

    A tab in .tsv. Else the one of , ; tab and | that divides the heading and the first row into as many columns; the comma where it is
    one of several, or where none does. Raises `DataError` where several others do.
    """
    if any(path.name.lower().removesuffix(".gz").endswith(suffix) for suffix in UNMARKED_SUFFIXES):
        return "\t"
    csv.field_size_limit(LONGEST_ROW)
    if said := SAID.fullmatch(next(lines(path, encoding_of(path, how.encoding)), "")):
        return said[1]
    fitting = [separator for separator in SEPARATORS if _divides(path, separator, how)]
    if len(fitting) > 1 and "," not in fitting:
        names = " or ".join(SEPARATORS[s] for s in fitting)
        raise DataError(f"{path.name}: columns may be parted by {names}; say which with `separator`", path=str(path))
    return fitting[0] if fitting else ","


def _divides(path: Path, separator: str, how: TableFormat) -> bool:
    reader = _reader(_table(path, encoding_of(path, how.encoding)), separator, how)
    try:
        first = list(itertools.islice((row for row in reader if row), 2))
    except csv.Error:
        return False
    return bool(first) and len(first[0]) > 1 and len(first[0]) == len(first[-1])


def jsonl_rows(path: Path, how: TableFormat) -> Iterator[dict[str, Any]]:
    """Rows as JSON gives them. Raises `DataError`, with the line, for what is no JSON object."""
    encoding = encoding_of(path, how.encoding)
    for number, line in enumerate(lines(path, encoding), 1):
        if UNDECODABLE in line:
            raise _undecodable(path, f"line {number}", encoding, line=number)
        if not line.strip():
            continue
        if "\0" in line[:ENOUGH]:
            raise DataError(f"{path.name} line {number} has NUL characters: perhaps it is UTF-16; say so with `encoding`", path=str(path))
        whole = (
            "; each line must be an object by itself, and the file no list of them" if number == 1 and line.lstrip().startswith("[") else ""
        )
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except Twice as error:
            raise DataError(f"{path.name} line {number} names {error.args[0]!r:.80} twice", path=str(path), line=number) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path.name} line {number} is no JSON: {error}{whole}", path=str(path), line=number) from error
        if not isinstance(row, dict):
            raise DataError(f"{path.name} line {number} is no JSON object{whole}", path=str(path), line=number)
        yield row


class Twice(ValueError):
    """A key that an object has twice: which of the two values is meant nobody knows."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise Twice(next(name for name in names if names.count(name) > 1))
    return row
