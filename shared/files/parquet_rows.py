"""The rows of Parquet files, one by one."""

import contextlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.files.disk import unreadable
from fedcybgd.shared.files.text_files import LARGEST_RATIO, RATIO_FROM

ROWS_AT_ONCE, BYTES_AT_ONCE = 1024, 64 << 20
"""Rows that are in memory at a time, and their bytes, about: rows with images are large. No single row has more bytes."""


def parquet_rows(path: Path, columns: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows as column → value; of `columns` only, where they are given. Raises `DataError` for what is no Parquet file, and for one that
    was made to fill a memory.

    A value that many rows share is in memory once, as it is in the file: text and bytes become a row's own when its turn has come.
    """
    number = 0
    with _opened(path) as file:
        names = _names(file, path)
        wanted = names if columns is None else [name for name in names if name in columns]
        shared = _shared(file, wanted, path, columns is not None)
        size = _rows_at_once(file)
    with _opened(path, shared) as file:
        rows = Rows(path)
        for batch in file.iter_batches(batch_size=size, columns=wanted):
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


def _shared(file: Any, wanted: Collection[str], path: Path, checked: bool) -> list[str]:
    """The leaves of these columns that may be of any length: they are read as the values that there are, and which of them each row has.

    `checked`: lists are refused, for no field is one, and a single row of a few bytes may have a billion numbers.
    """
    leaves = [file.schema.column(index) for index in range(len(file.schema))]
    for name in wanted:
        if checked and any(leaf.max_repetition_level for leaf in leaves if _is_of(leaf, name)):
            raise DataError(
                f"{path.name}: column {name!r} has lists; it must be a whole number, text or an image", path=str(path), column=name
            )
    return [
        leaf.path for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL" and not leaf.max_repetition_level
        and any(_is_of(leaf, name) for name in wanted)
    ]  # fmt: skip


def _is_of(leaf: Any, column: str) -> bool:
    path: str = leaf.path
    return path == column or path.startswith(f"{column}.")


def _sizes(batch: Any) -> list[int]:
    """Bytes of text and bytes in each row."""
    import pyarrow
    import pyarrow.compute as compute

    total, columns = pyarrow.scalar(0, pyarrow.int64()), list(batch.columns)
    while columns:
        column = columns.pop()
        if pyarrow.types.is_struct(column.type):
            columns += [column.field(index) for index in range(column.type.num_fields)]
        elif pyarrow.types.is_dictionary(column.type):
            lengths = compute.binary_length(column.dictionary).cast(pyarrow.int64())
            total = compute.add(total, compute.fill_null(lengths.take(column.indices), 0))
    sizes: list[int] = total.to_pylist() if isinstance(total, pyarrow.Array) else [0] * batch.num_rows
    return sizes


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
    except UnicodeDecodeError as error:  # text that was written without a look at it
        for row in range(batch.num_rows):
            for name in names:
                try:
                    batch.column(name)[row].as_py()
                except UnicodeDecodeError:
                    raise DataError(
                        f"{path.name} row {before + row + 1}: column {name!r} has bytes that mean nothing in UTF-8",
                        path=str(path), row=before + row + 1, column=name,
                    ) from error  # fmt: skip
        raise
