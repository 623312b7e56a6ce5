"""The rows of Parquet files, one by one."""

import contextlib
import functools
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.files.answers import MOST_ANSWERS
from fedcybgd.shared.files.disk import unreadable
from fedcybgd.shared.files.text_files import LARGEST_RATIO, RATIO_FROM

ROWS_AT_ONCE, BYTES_AT_ONCE = 1024, 64 << 20
"""Rows that are in memory at a time, and their bytes, about: rows with images are large. No single row has more bytes."""


NUMBER_BYTES = 8
"""Of an element of a list, beside its text"""


def parquet_rows(path: Path, columns: Collection[str] | None = None, lists: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows as column → value; of `columns` only, where they are given, and then only those in `lists` may have lists. Raises `DataError`
    for what is no Parquet file, and for one that was made to fill a memory.

    A value that many rows share is in memory once, as it is in the file: text and bytes become a row's own when its turn has come.
    """
    number = 0
    with _opened(path) as file:
        names = _names(file, path)
        wanted = names if columns is None else [name for name in names if name in columns]
        leaves = _leaves(file, wanted)
        shared = _shared(file, leaves, path, None if columns is None else lists)
        size = _rows_at_once(file)
        groups = range(file.metadata.num_row_groups)
    with _opened(path, shared) as file:
        rows = Rows(path)
        # By number: by its name a column `text` brings `text.tokens` along, which is another one.
        for batch in file.reader.iter_batches(size, row_groups=groups, column_indices=[index for of in leaves.values() for index in of]):
            for piece in rows.pieces(batch, number):
                yield from _values(piece, wanted, number, path)
                number += piece.num_rows


def parquet_columns(path: Path) -> list[str] | None:
    """The names of the columns; None where there are no rows."""
    with _opened(path) as file:
        return _names(file, path) if file.metadata.num_rows else None


def parquet_label_names(path: Path, column: str) -> list[str] | None:
    """What the numbers of a column mean, from 0, where the file says it: as the package `datasets` writes it down of a ClassLabel."""
    with _opened(path) as file:
        said = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(said)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


class Rows:
    """Counts what the rows of a file come to."""

    def __init__(self, path: Path) -> None:
        self._path, self._most = path, LARGEST_RATIO * path.stat().st_size
        self._total = 0

    def pieces(self, batch: Any, before: int) -> Iterator[Any]:
        """A batch, by as many rows as have about `BYTES_AT_ONCE`; `before` are the rows that came earlier."""
        begin = held = 0
        for row, size in enumerate(_sizes(batch)):
            self._total += size
            if size > BYTES_AT_ONCE:
                raise DataError(
                    f"{self._path.name} row {before + row + 1} has {size:,} bytes; at most {BYTES_AT_ONCE:,} are read: is it a file of rows?",
                    path=str(self._path), row=before + row + 1,
                )  # fmt: skip
            if self._total > RATIO_FROM and self._total > self._most:
                raise DataError(
                    f"{self._path.name} unpacks to more than {LARGEST_RATIO} times its size: the same values stand in row after row",
                    path=str(self._path), row=before + row + 1,
                )  # fmt: skip
            if held + size > BYTES_AT_ONCE:
                yield batch.slice(begin, row - begin)
                begin, held = row, 0
            held += size
        yield batch.slice(begin)


@contextlib.contextmanager
def _opened(path: Path, shared: Collection[str] = ()) -> Iterator[Any]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(
            f"{path.name} is a Parquet file, and pyarrow is not installed here (the extra `parquet`)", path=str(path)
        ) from error
    try:
        with parquet.ParquetFile(path, read_dictionary=list(shared)) as file:
            yield file
    except OSError as error:
        raise unreadable(error, f"{path.name} is no Parquet file, or it is damaged: {error}", path=str(path)) from error
    except (ValueError, NotImplementedError, ArithmeticError) as error:
        raise DataError(f"{path.name} is no Parquet file, or it is damaged: {error}", path=str(path)) from error


def _leaves(file: Any, wanted: Collection[str]) -> dict[str, list[int]]:
    """Column → the numbers of its leaves. Their paths do not say it: `text.tokens` is a part of a column `text`, or a column beside it."""
    found, begin = dict[str, list[int]](), 0
    for field in file.schema_arrow:
        end = begin + _number_of_leaves(field.type)
        if field.name in wanted:
            found[field.name] = list(range(begin, end))
        begin = end
    return found


def _number_of_leaves(kind: Any) -> int:
    kind = getattr(kind, "storage_type", kind)  # of a type that is kept as another one
    return sum(_number_of_leaves(kind.field(index).type) for index in range(kind.num_fields)) if kind.num_fields else 1


def _shared(file: Any, columns: Mapping[str, Collection[int]], path: Path, lists: Collection[str] | None) -> list[str]:
    """The leaves of these columns that may be of any length: they are read as the values that there are, and which of them each row has.

    Lists are refused but in `lists` (None: anywhere), for no other field is one, and a single row of a few bytes may have a billion numbers.
    """
    leaves = {name: [file.schema.column(index) for index in of] for name, of in columns.items()}
    for name, of in leaves.items():
        if lists is None or not any(leaf.max_repetition_level for leaf in of):
            continue
        if name not in lists or not _is_of_lists(file.schema_arrow.field(name).type):
            what = "must have a text and its place in each" if name in lists else "must be a whole number, text or an image"
            raise DataError(f"{path.name}: column {name!r} has lists; it {what}", path=str(path), column=name)
        if any(values > MOST_ANSWERS * rows for values, rows in _lengths(file, columns[name])):
            raise DataError(
                f"{path.name}: the lists of column {name!r} are longer than {MOST_ANSWERS} on the average", path=str(path), column=name
            )
    return [
        leaf.path for of in leaves.values() for leaf in of
        if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL" and (lists is not None or not leaf.max_repetition_level)
    ]  # fmt: skip


def _is_of_lists(kind: Any) -> bool:
    """Whether only structs, and lists of the usual kind, are around what the column holds."""
    import pyarrow

    parts = [kind.field(index).type for index in range(kind.num_fields)]
    usual = pyarrow.types.is_struct(kind) or pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    return all(map(_is_of_lists, parts)) and (usual or not parts)


def _lengths(file: Any, leaves: Collection[int]) -> Iterator[tuple[int, int]]:
    """Of each of these leaves, in each group of rows: how many values it has, and how many rows."""
    for group in (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)):
        for leaf in leaves:
            yield group.column(leaf).num_values, group.num_rows


def _sizes(batch: Any) -> list[int]:
    """Bytes of text and bytes in each row, and of lists."""
    import pyarrow.compute as compute

    total = functools.reduce(compute.add, map(_bytes, batch.columns), _nothing(batch.num_rows))
    sizes: list[int] = total.to_pylist()
    return sizes


def _bytes(column: Any) -> Any:
    import pyarrow
    import pyarrow.compute as compute

    if pyarrow.types.is_struct(column.type):
        parts = (_bytes(column.field(index)) for index in range(column.type.num_fields))
        return functools.reduce(compute.add, parts, _nothing(len(column)))
    if pyarrow.types.is_dictionary(column.type):
        lengths = compute.binary_length(column.dictionary).cast(pyarrow.int64())
        return compute.fill_null(lengths.take(column.indices), 0)
    if pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type):
        inside = compute.add(_bytes(column.flatten()), NUMBER_BYTES)
        before = pyarrow.concat_arrays([pyarrow.array([0], pyarrow.int64()), compute.cumulative_sum(inside)])
        lengths = compute.fill_null(compute.list_value_length(column), 0).cast(pyarrow.int64())
        ends = compute.cumulative_sum(lengths)
        return compute.subtract(before.take(ends), before.take(compute.subtract(ends, lengths)))
    return _nothing(len(column))


def _nothing(rows: int) -> Any:
    import pyarrow

    return pyarrow.repeat(pyarrow.scalar(0, pyarrow.int64()), rows)


def _rows_at_once(file: Any) -> int:
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    mean = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    return max(1, min(ROWS_AT_ONCE, int(BYTES_AT_ONCE / max(1.0, mean))))


def _names(file: Any, path: Path) -> list[str]:
    names: list[str] = file.schema_arrow.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path.name}: two columns are named {twice[0]!r}", path=str(path), column=twice[0])
    return names


def _values(batch: Any, names: list[str], before: int, path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    # Text that was written without a look at it; dates and spans of time that Python has not, zones that this machine has not.
    except (ValueError, ArithmeticError, NotImplementedError, LookupError) as error:
        for row in range(batch.num_rows):
            for name in names:
                try:
                    batch.column(name)[row].as_py()
                except UnicodeDecodeError as its_own:
                    raise _unreadable(path, before + row + 1, name, "has bytes that mean nothing in UTF-8") from its_own
                except (ValueError, ArithmeticError, NotImplementedError, LookupError) as its_own:
                    raise _unreadable(path, before + row + 1, name, f"has a value that cannot be read: {its_own}") from its_own
        raise DataError(f"{path.name} cannot be read: {error}", path=str(path)) from error


def _unreadable(path: Path, row: int, column: str, what: str) -> DataError:
    return DataError(f"{path.name} row {row}: column {column!r} {what}", path=str(path), row=row, column=column)
