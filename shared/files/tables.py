"""Reads rows from CSV, JSON Lines and Parquet files and maps their columns to the fields of a task."""

import csv
import gzip
import json
import re
import shlex
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.files.answers import stored_answers
from fedcybgd.shared.files.disk import unreadable
from fedcybgd.shared.files.images import stored_image
from fedcybgd.shared.files.labels import NUMBER, Labels, bare, shown
from fedcybgd.shared.files.parquet_rows import parquet_columns, parquet_label_names, parquet_rows
from fedcybgd.shared.files.stand_ins import HEAD, PACKED, other_format, pointer
from fedcybgd.shared.files.table_format import Format, TableFormat
from fedcybgd.shared.files.text_rows import csv_rows, csv_top, jsonl_rows

Row = dict[str, Any]

SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
OPEN_ENDED_FIELDS = ("prompt",)
NOT_READ = {
    **dict.fromkeys((".zst", ".bz2", ".xz", ".zip", ".7z"), "unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it as CSV"),
    **dict.fromkeys((".arrow", ".feather"), "save it as Parquet"),
    ".json": "of .jsonl each line is an object by itself",
}
"""Suffixes of files that people have, and what to do"""
PLAIN = re.compile(r"[A-Za-z_][\w -]*")
"""What YAML takes for text as it stands"""
NUMBERS_ROWS = re.compile(r"(.*[_ .-])?(id|idx|index|nr|no|num|number|row|uuid|key)|unnamed: \d+|", re.IGNORECASE)
"""Names of columns that hold no text and no label"""
LOOKED_AT = 1000
"""Rows below a heading that may be none"""
LONGEST_NAME = 120
"""Characters of a column's name; a longer one is somebody's text"""
SENTENCES, WORDS = (".", "!"), 3
"""How a text ends that is a sentence, and how many words it has at the least; questions are headings of forms"""
CELL = 40


@dataclass(frozen=True)
class FieldSet:
    """Fields of a task: one of `alternatives` must be there as a whole."""

    alternatives: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()


FIELDS: dict[Task, FieldSet] = {
    "text-classification": FieldSet((("text", "label"),), ("text_pair",)),
    "causal-lm": FieldSet((("text",), ("prompt", "completion"))),
    "image-classification": FieldSet((("image", "label"),)),
    "extractive-qa": FieldSet((("question", "context", "answers"),)),
}
EVERY_FIELD = frozenset(name for fields in FIELDS.values() for names in (*fields.alternatives, fields.optional) for name in names)
ASKED: dict[Task, FieldSet] = {
    "text-classification": FieldSet((("text",),), ("text_pair", "label")),
    "causal-lm": FieldSet((("text",), ("prompt", "completion"), ("prompt",))),
    "image-classification": FieldSet((("image",),), ("label",)),
    "extractive-qa": FieldSet((("question", "context"),), ("answers",)),
}
"""Of rows that a model is asked about: labels and answers may be there, and are then what should come out"""


def format_of(path: Path) -> Format:
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    if suffixes and suffixes[-1] in SUFFIXES:
        return SUFFIXES[suffixes[-1]]
    how = next((f"; {what}" for suffix, what in NOT_READ.items() if path.name.lower().endswith(suffix)), "")
    raise DataError(
        f"cannot tell the format of {path.name}: name it {', '.join(SUFFIXES)} (.gz may follow), or set `format`{how}",
        path=path.name,
    )


def read_rows(
    path: Path, how: TableFormat | None = None, columns: Collection[str] | None = None, lists: Collection[str] = ()
) -> Iterator[Row]:
    """The rows of a file, one dictionary each; `.gz` is unpacked on the way. Of a Parquet file `columns` only, where they are given: those
    in `lists` may have lists.

    Raises `DataError` when the file is missing, unreadable, or not of its format; the message names the line.
    """
    how = how or TableFormat()
    with _readable(path):
        _check_is_itself(path, how)
        match how.format or format_of(path):
            case "csv":
                yield from csv_rows(path, how)
            case "jsonl":
                yield from jsonl_rows(path, how)
            case "parquet":
                yield from parquet_rows(path, columns, lists)


def _check_is_itself(path: Path, how: TableFormat) -> None:
    """Raise `DataError` for a pointer, a page or another format under the name of a data file: its reader would only say where it failed."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    found = pointer(head)
    if found is None and (how.format or format_of(path)) != "parquet":
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as inner:
                head = inner.read(HEAD)
            found = pointer(head)
        found = found or other_format(head)
        if found == PACKED:
            found += ", a second time" if path.suffix.lower() == ".gz" else "; name it .gz"
    if found is not None:
        raise DataError(f"{path.name} is {found}", path=str(path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        if not path.is_file():
            raise DataError(f"data file {path} does not exist or is no file", path=str(path))
        yield
    except OSError as error:
        raise unreadable(error, f"data file {path.name} cannot be read: {error}", path=str(path)) from error
    except (UnicodeError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"data file {path.name} cannot be read: {error}", path=str(path)) from error


def column_names(path: Path, how: TableFormat | None = None) -> list[str] | None:
    """The names of a file's columns, of JSON Lines those of the first row; None where there is no row."""
    how = how or TableFormat()
    kind = (how.format or format_of(path)) if path.is_file() else None
    if kind is not None:
        with _readable(path):
            _check_is_itself(path, how)
    if kind == "parquet":
        return parquet_columns(path)
    if kind == "csv":
        with _readable(path):
            heading, rows = csv_top(path, how, 1)
        if rows:
            return heading
    first = next(read_rows(path, how), None)
    return None if first is None else list(first)


def named_in(there: Collection[str], column: str) -> str:
    """A column as its file writes it, where that has another of the forms that Unicode has for the same characters."""
    alike = [name for name in there if bare(name) == bare(column)]
    return alike[0] if column not in there and len(alike) == 1 else column


def label_names_of(path: Path, column: str | None, how: TableFormat | None = None) -> list[str] | None:
    """The names that a file itself gives to the numbers of a column of labels; None where it gives none."""
    is_parquet = ((how and how.format) or format_of(path)) == "parquet"
    return parquet_label_names(path, column) if is_parquet and column is not None else None


def read_examples(
    path: Path,
    spec: TaskSpec,
    columns: Mapping[str, str],
    how: TableFormat | None = None,
    mapped_in: str = "[data.NAME.columns]",
) -> list[Row]:
    """All rows of `path` as `examples` gives them. Raises `DataError` also where there are none."""
    return list(examples(path, spec, columns, how, mapped_in))


def examples(
    path: Path,
    spec: TaskSpec,
    columns: Mapping[str, str],
    how: TableFormat | None = None,
    mapped_in: str = "[data.NAME.columns]",
    images: Path | None = None,
    fields: Mapping[Task, FieldSet] = FIELDS,
) -> Iterator[Row]:
    """The rows of `path` as examples of a task, one by one: {text, label, …} or {text} or {prompt, completion} or {image, label}
    or {question, context, answers}; with `fields` of these some.

    `columns` maps a field to the column that supplies it; a field that is not in it is its own column. Labels come out as
    integers in [0, num_labels); a label that has a name in `spec` becomes its index. `mapped_in` is the setting of `columns`.
    An image is a `StoredImage`, of which the header was looked at; where it is a path, it lies in the folder `images`.
    Raises `DataError`, with the row and what would be right.
    """
    how = how or TableFormat()
    there = column_names(path, how)
    if there is None:
        raise DataError(f"{path.name} has no rows", path=str(path))
    columns = {field: named_in(there, column) for field, column in columns.items()}
    wanted = _match_columns(spec.task, fields[spec.task], columns, there, path, how, mapped_in)
    lists = [wanted["answers"]] if "answers" in wanted else []
    first = next(read_rows(path, how, wanted.values(), lists))
    wanted = {f: column for f, column in wanted.items() if f not in fields[spec.task].optional or not _is_absent(first.get(column))}
    unmapped = {f: columns.get(f, f) for f in fields[spec.task].optional if f not in wanted}
    labels = Labels(spec.num_labels, spec.label_names, how.first_label, label_names_of(path, wanted.get("label"), how))
    read = [*wanted.values(), *(column for column in unmapped.values() if column in there)]
    for number, row in enumerate(read_rows(path, how, read, lists), 1):
        for field, column in unmapped.items():
            if not _is_absent(row.get(column)):
                raise DataError(
                    f"{path.name} row {number} has a column {column!r}, and row 1 has none", path=str(path), row=number, field=field
                )
        yield _example(row, wanted, labels, path, number, images)


def _match_columns(
    task: Task, fields: FieldSet, columns: Mapping[str, str], there: list[str], path: Path, how: TableFormat, mapped_in: str
) -> dict[str, str]:
    known = {f for alternative in fields.alternatives for f in alternative} | set(fields.optional)
    if unknown := sorted(set(columns) - known):
        raise DataError(f"{task} has no field {', '.join(unknown)}; its fields are {', '.join(sorted(known))}", fields=sorted(known))
    present = {f: columns.get(f, f) for f in known if columns.get(f, f) in there}
    missing = sorted(c for c in columns.values() if c not in there)
    matching = [a for a in fields.alternatives if set(a) <= set(present)]
    if (missing or not matching) and (cell := _row_for_heading(path, how, there)) is not None:
        raise DataError(
            f"{path.name} seems to have no heading: its first line holds {cell[:CELL]!r}, as a row would. "
            f"Write the names of its columns above it, as in: {','.join(columns.get(f, f) for f in fields.alternatives[0])}",
            path=str(path),
        )  # fmt: skip
    if missing:
        raise DataError(
            f"{path.name} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, there))}. "
            f"Set {mapped_in} to match",
            path=str(path), columns=there, missing=missing,
        )  # fmt: skip
    # A mapping that was written down says which alternative is meant; else the first that is there.
    for alternative in sorted(matching, key=lambda a: -len(set(a) & set(columns))):
        return {f: present[f] for f in (*alternative, *fields.optional) if f in present}
    left = [column for column in there if column not in present.values()]
    first = next((column for column in left if not NUMBERS_ROWS.fullmatch(column)), left[0] if left else "COLUMN")
    nearest = max(fields.alternatives, key=lambda a: len(set(a) & set(present)))
    field = next(f for f in nearest if f not in present)
    match mapped_in[0]:
        case "[":
            line = f"{field} = {json.dumps(first, ensure_ascii=False)}"
        case "-":
            line = f"{mapped_in} {shlex.quote(f'{field}={first}')}"
        case _:
            line = f"{{{field}: {first if PLAIN.fullmatch(first) else json.dumps(first, ensure_ascii=False)}}}"
    raise DataError(
        f"{path.name} lacks what {task} needs: {' or '.join(' and '.join(a) for a in fields.alternatives)}; its columns are "
        f"{', '.join(map(repr, there))}. Map them in {mapped_in}, as in: {line}",
        path=str(path), columns=there,
    )  # fmt: skip


def _row_for_heading(path: Path, how: TableFormat, heading: Sequence[str]) -> str | None:
    """What in the first line of a CSV file says that it is a row: a number, a value that comes again below, a sentence, a long text."""
    if (how.format or format_of(path)) != "csv":
        return None
    with _readable(path):
        _, below = csv_top(path, how, LOOKED_AT)
    for place, name in enumerate(heading):
        text = name.strip()
        is_text = len(text) > LONGEST_NAME or (text.endswith(SENTENCES) and len(text.split()) >= WORDS)
        if text and (is_text or NUMBER.fullmatch(text) or any(row[place : place + 1] == [name] for row in below)):
            return text
    return None


def _example(row: Row, wanted: dict[str, str], labels: Labels, path: Path, number: int, images: Path | None) -> Row:
    example: Row = {}
    where = f"{path.name} row {number}"
    for field, column in wanted.items():
        value = row.get(column)
        facts = {"path": str(path), "row": number, "field": field, "column": column}
        if field == "label":
            example[field] = labels.index(value, where, **facts)
        elif field == "image":
            example[field] = stored_image(value, images, where, facts)
            example[field].check()
        elif field == "answers":
            example[field] = stored_answers(value, example["context"], where, facts)
        else:
            example[field] = _text(value, field, where, facts)
    return example


def _is_absent(value: object) -> bool:
    """Of a field that a row may do without: null in JSON and Parquet, an empty cell in CSV."""
    return value is None or (isinstance(value, (str, bytes)) and not value.strip())


def _text(value: object, field: str, where: str, facts: Row) -> str:
    value, column = _decoded(value), facts["column"]
    if not isinstance(value, str) or (not value.strip() and field not in OPEN_ENDED_FIELDS):
        raise DataError(f"{where}: column {column!r} must be text that is not empty, not {shown(value)}", **facts)
    if not value.isascii() and (half := next((c for c in value if "\ud800" <= c <= "\udfff"), None)):
        raise DataError(
            f"{where}: column {column!r} holds half a character (\\u{ord(half):04x}, one of a pair): the text was cut inside of it",
            **facts,
        )
    return value


def _decoded(value: object) -> object:
    """Text that a Parquet file holds as bytes, as text."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value
