"""Reads rows from CSV, JSON Lines and Parquet files and maps their columns to the fields of a task."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from shared.errors import DataError
from shared.protocol import Task

Format = Literal["csv", "jsonl", "parquet"]
Row = dict[str, Any]

SUFFIXES: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
OPEN_ENDED_FIELDS = ("prompt",)


@dataclass(frozen=True)
class FieldSet:
    """Fields of a task: one of `alternatives` must be there as a whole."""

    alternatives: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()


FIELDS: dict[str, FieldSet] = {
    "text-classification": FieldSet((("text", "label"),), ("text_pair",)),
    "causal-lm": FieldSet((("text",), ("prompt", "completion"))),
}


def format_of(path: Path) -> Format:
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    if suffixes and suffixes[-1] in SUFFIXES:
        return SUFFIXES[suffixes[-1]]
    raise DataError(
        f"cannot tell the format of {path.name}: name it {', '.join(SUFFIXES)} (.gz may follow), or set `format`",
        path=path.name,
    )


def read_rows(path: Path, format: Format | None = None) -> Iterator[Row]:
    """The rows of a file, one dictionary each; `.gz` is unpacked on the way.

    Raises `DataError` when the file is missing, unreadable, or not of its format; the message names the line.
    """
    if not path.is_file():
        raise DataError(f"data file {path} does not exist or is no file", path=str(path))
    try:
        match format or format_of(path):
            case "csv":
                yield from _csv_rows(path)
            case "jsonl":
                yield from _jsonl_rows(path)
            case "parquet":
                yield from _parquet_rows(path)
    except (UnicodeDecodeError, OSError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"data file {path} cannot be read: {error}", path=str(path)) from error


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _csv_rows(path: Path) -> Iterator[Row]:
    with _open_text(path) as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            if None in row or any(v is None for v in row.values()):
                raise DataError(
                    f"{path.name} line {reader.line_num}: the row has not as many columns as the heading",
                    path=str(path),
                    line=reader.line_num,
                )
            yield row


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path.name} line {number} is no JSON: {error}", path=str(path), line=number) from error
            if not isinstance(row, dict):
                raise DataError(f"{path.name} line {number} is no JSON object", path=str(path), line=number)
            yield row


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{path.name} is a Parquet file: pip install 'fedcybgd[parquet]' to read it", path=str(path)) from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (ValueError, OSError) as error:
        raise DataError(f"{path.name} is no Parquet file, or it is damaged: {error}", path=str(path)) from error


def read_examples(
    path: Path,
    task: Task,
    columns: Mapping[str, str],
    num_labels: int | None,
    label_names: list[str] | None = None,
    format: Format | None = None,
) -> list[Row]:
    """All rows of `path` as examples of `task`: {text, label, …} or {text} or {prompt, completion}.

    `columns` maps a field to the column that supplies it; a field that is not in it is its own column. Labels come out as
    integers in [0, num_labels); a label that is one of `label_names` becomes its index.
    Raises `DataError`, with the row and what would be right.
    """
    examples: list[Row] = []
    names = {name: index for index, name in enumerate(label_names or ())}
    wanted: dict[str, str] | None = None
    for number, row in enumerate(read_rows(path, format), 1):
        if wanted is None:
            wanted = _match_columns(task, columns, row, path)
        examples.append(_example(row, wanted, num_labels, names, f"{path.name} row {number}"))
    if not examples:
        raise DataError(f"{path} has no rows", path=str(path))
    return examples


def _match_columns(task: Task, columns: Mapping[str, str], row: Row, path: Path) -> dict[str, str]:
    fields = FIELDS[task]
    known = {f for alternative in fields.alternatives for f in alternative} | set(fields.optional)
    if unknown := sorted(set(columns) - known):
        raise DataError(f"{task} has no field {', '.join(unknown)}; its fields are {', '.join(sorted(known))}", fields=sorted(known))
    if missing := sorted(c for c in columns.values() if c not in row):
        raise DataError(
            f"{path.name} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, row))}. "
            "Set [data.columns] to match",
            path=str(path), columns=list(row), missing=missing,
        )  # fmt: skip
    present = {f: columns.get(f, f) for f in known if columns.get(f, f) in row}
    # A mapping that was written down says which alternative is meant; else the first that is there.
    for alternative in sorted(fields.alternatives, key=lambda a: -len(set(a) & set(columns))):
        if set(alternative) <= set(present):
            return {f: present[f] for f in (*alternative, *fields.optional) if f in present}
    raise DataError(
        f"{path.name} lacks what {task} needs: {' or '.join(' and '.join(a) for a in fields.alternatives)}; its columns are "
        f"{', '.join(map(repr, row))}. Map them in [data.columns], as in: text = \"{next(iter(row), 'COLUMN')}\"",
        path=str(path), columns=list(row),
    )  # fmt: skip


def _example(row: Row, wanted: dict[str, str], num_labels: int | None, names: dict[str, int], where: str) -> Row:
    example: Row = {}
    for field, column in wanted.items():
        value = row.get(column)
        if field == "label":
            example[field] = names[value] if isinstance(value, str) and value in names else _label(value, num_labels, where)
        elif not isinstance(value, str) or (not value.strip() and field not in OPEN_ENDED_FIELDS):
            raise DataError(f"{where}: column {column!r} must be text that is not empty, not {value!r:.60}", column=column)
        else:
            example[field] = value
    return example


def _label(value: object, num_labels: int | None, where: str) -> int:
    label: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        label = value
    elif isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):  # int() itself would read 1_0 as ten
        label = int(value)
    if label is None:
        raise DataError(f"{where}: the label must be a whole number, not {value!r:.60}")
    if num_labels is not None and not 0 <= label < num_labels:
        raise DataError(f"{where}: label {label} is outside 0…{num_labels - 1}, the range of the run's {num_labels} labels")
    return label
