"""Data files as other programs write them, and how they are read."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.files.table_format import TableFormat
from fedcybgd.shared.files.tables import read_examples

ROWS = [{"text": 'my card, "gone"', "label": 0}, {"text": "two\nlines – ünïcode", "label": 2}]


def write_csv(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_jsonl(path: Path, rows: list[Any], encoding: str = "utf-8") -> Path:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def examples(path: Path, task: Task = "text-classification", num_labels: int | None = 3, **more: Any) -> list[dict[str, Any]]:
    """`more`: columns, label_names, and settings of `TableFormat`."""
    columns, names = more.pop("columns", {}), more.pop("label_names", None)
    spec = TaskSpec(task=task, num_labels=num_labels, label_names=names, max_length=8)
    return read_examples(path, spec, columns, TableFormat(**more))


def refused(path: Path, *args: Any, **more: Any) -> DataError:
    with pytest.raises(DataError) as error:
        examples(path, *args, **more)
    assert error.value.code == "data_invalid"
    return error.value
