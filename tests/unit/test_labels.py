"""A label means the same in every format, or the reader says why it cannot tell."""

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.table_format import TableFormat
from fedcybgd.shared.files.tables import read_examples


def written(folder: Path, labels: list[Any]) -> list[Path]:
    """The same rows as CSV, JSON Lines and Parquet, each as its own library writes them."""
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return [folder / "rows.csv", folder / "rows.jsonl", folder / "rows.parquet"]


def classes(count: int, names: list[str] | None = None) -> TaskSpec:
    return TaskSpec(task="text-classification", num_labels=count, label_names=names, max_length=8)


def labels_of(path: Path, count: int, names: list[str] | None = None, **how: Any) -> list[int] | str:
    """The labels, or why they are refused."""
    try:
        return [e["label"] for e in read_examples(path, classes(count, names), {}, TableFormat(**how))]
    except DataError as error:
        problem = error
    assert problem.code == "data_invalid"
    assert (problem.detail["field"], problem.detail["column"]) == ("label", "label")
    assert f"row {problem.detail['row']}" in problem.message
    return problem.message.partition(": ")[2]


@pytest.mark.parametrize(
    ("values", "names", "wanted"),
    [
        ([0, 2, 1], None, [0, 2, 1]),
        ([0.0, 2.0], None, [0, 2]),
        (["0", "2"], None, [0, 2]),
        (["card", "loan"], ["loan", "card", "pin"], [1, 0]),
        ([1, 0], ["loan", "card", "pin"], [1, 0]),
        ([1, 3, 2], ["1", "2", "3"], [0, 2, 1]),
        (["1", "3"], ["1", "2", "3"], [0, 2]),
        ([1.0, 3.0], ["1", "2", "3"], [0, 2]),
        ([1.0, 0.5], ["0.5", "1.0", "1.5"], [1, 0]),
        ([1, 2], ["1.0", "2.0", "3.0"], [0, 1]),
        ([7, 100], ["100", "7", "none"], [1, 0]),
        ([True, False], ["False", "True", "?"], [1, 0]),
        ([False, True], ["true", "false", "?"], [1, 0]),
        ([" card ", "mu\u0308ll"], ["card", "m\u00fcll", "?"], [0, 1]),
    ],
)
def test_the_same_rows_have_the_same_labels_in_every_format(
    tmp_path: Path, values: list[Any], names: list[str] | None, wanted: list[int]
) -> None:
    assert [labels_of(path, 3, names) for path in written(tmp_path, values)] == [wanted] * 3


@pytest.mark.parametrize(
    ("values", "names", "said"),
    [
        ([0, 3], ["1", "2", "3"], "which are numbers themselves"),
        ([1, 2.5], None, "must be a whole number, not "),
        ([True, False], None, "must be a whole number, not "),
        ([True, False], ["yes", "no", "?"], "or one of the run's label names ('yes', 'no', '?'), not "),
        (["Card"], ["card", "loan", "?"], "or one of the run's label names"),
        ([3], ["card", "loan", "?"], "label 3 is outside 0…2"),
        ([1], ["1", "1.0", "01"], None),
        (["1.00"], ["1", "1.0", "01"], "none of the run's labels"),
    ],
)
def test_what_is_no_label_is_refused_in_every_format(tmp_path: Path, values: list[Any], names: list[str] | None, said: str | None) -> None:
    for path in written(tmp_path, values):
        found = labels_of(path, 3, names)
        assert found == [0] if said is None else said in found, path.name


def test_a_column_that_pandas_widened_for_a_gap_is_refused_for_the_gap_alone(tmp_path: Path) -> None:
    csv_file, jsonl, parquet_file = written(tmp_path, [1.0, None])
    for path in (csv_file, jsonl, parquet_file):
        message = labels_of(path, 3)
        assert "must be a whole number" in message
        with pytest.raises(DataError, match="row 2"):
            read_examples(path, classes(3), {})


def test_labels_that_count_from_one_are_read_when_that_is_said(tmp_path: Path) -> None:
    for path in written(tmp_path, [1, 3, 2]):
        assert "label 3 is outside 0…2, the range of the run's 3 labels; where labels count from 1, set `first_label = 1`" in labels_of(
            path, 3
        )
        assert labels_of(path, 3, first_label=1) == [0, 2, 1]
        assert labels_of(path, 3, ["a", "b", "c"], first_label=1) == [0, 2, 1]
        assert labels_of(path, 3, ["1", "2", "3"], first_label=1) == [0, 2, 1]
    for path in written(tmp_path, [1, 0]):
        assert "label 0 is outside 1…3" in labels_of(path, 3, first_label=1)


def test_a_number_that_may_be_a_name_or_a_position_is_asked_about(tmp_path: Path) -> None:
    stars = ["1 star", "2 stars", "3 stars"]
    for path in written(tmp_path, [1, 2]):
        assert "label 1 may be '1 star' or, counted from 0, '2 stars'; write the name, or set `first_label`" in labels_of(path, 3, stars)
        assert labels_of(path, 3, stars, first_label=1) == [0, 1]
        assert labels_of(path, 3, ["0 bad", "1 fair", "2 good"]) == [1, 2]
        assert labels_of(path, 3, ["bad", "2 fair", "good"]) == [1, 2]


@pytest.mark.parametrize("value", [Decimal("1"), Decimal("1.00"), b"1", "１", None, float("nan")])
def test_other_types_of_parquet(tmp_path: Path, value: Any) -> None:
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [value]}), tmp_path / "rows.parquet")
    found = labels_of(tmp_path / "rows.parquet", 3)
    assert found == [1] if isinstance(value, (Decimal, bytes)) else "must be a whole number" in found


@pytest.mark.parametrize(
    ("told", "names", "wanted"),
    [
        (["no", "yes", "?"], ["yes", "no", "?"], [1, 0, 2]),
        (["NO", "mu\u0308ll", "?"], ["m\u00fcll", "no", "?"], [1, 0, 2]),
        (["1", "0", "2"], ["0", "1", "2"], [1, 0, 2]),
        (["no", "yes", "?"], ["bad", "fair", "good"], [0, 1, 2]),  # none is meant: positions
        (["no", "yes", "?"], None, [0, 1, 2]),
        (
            ["no", "yes", "maybe"],
            ["yes", "no", "?"],
            "label 2 is 'maybe' in the file itself, which is none of the run's labels 'yes', 'no', '?'",
        ),
        (["no", "yes"], ["yes", "no", "?"], "label 2 has no name in the file itself"),
        (None, ["yes", "no", "?"], [0, 1, 2]),
        ([1, 2, 3], ["yes", "no", "?"], [0, 1, 2]),
    ],
)
def test_a_parquet_file_that_names_its_numbers_is_read_by_these_names(
    tmp_path: Path, told: list[Any] | None, names: list[str] | None, wanted: list[int] | str
) -> None:
    """As `datasets` writes a ClassLabel: two data sets of the same labels number them otherwise."""
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": told, "_type": "ClassLabel"}}
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [0, 1, 2]})
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(about), tmp_path / "rows.parquet")
    found = labels_of(tmp_path / "rows.parquet", 3, names)
    assert found == wanted if isinstance(wanted, list) else wanted in found
