"""The rows of Parquet files, one by one."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fedcybgd.shared.contract.errors import DataError

ROWS_AT_ONCE, BYTES_AT_ONCE = 1024, 64 << 20
"""Rows that are in memory at a time, and their bytes, about: rows with images are large."""


def parquet_rows(path: Path, columns: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows as column → value; of `columns` only, where they are given. Raises `DataError` for what is no Parquet file."""
    number = 0
    with _opened(path) as file:
        names = _names(file, path)
        wanted = names if columns is None else [name for name in names if name in columns]
        for batch in file.iter_batches(batch_size=_rows_at_once(file), columns=wanted):
            yield from _values(batch, wanted, number, path)
            number += batch.num_rows


def parquet_columns(path: Path) -> list[str] | None:
    """The names of the columns; None where there are no rows."""
    with _opened(path) as file:
        return _names(file, path) if file.metadata.num_rows else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(
            f"{path.name} is a Parquet file, and pyarrow is not installed here (the extra `parquet`)", path=str(path)
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (ValueError, OSError, NotImplementedError, ArithmeticError) as error:
        raise DataError(f"{path.name} is no Parquet file, or it is damaged: {error}", path=str(path)) from error


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
