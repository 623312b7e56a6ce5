"""Rows come out of CSV, JSON Lines and Parquet alike, and whatever is wrong with a file is said with its place."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.files.tables import format_of, read_rows
from tests.support.tables import ROWS, examples, refused, write_csv, write_jsonl, write_parquet


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", write_csv),
        ("a.csv.gz", write_csv),
        ("A.CSV", write_csv),
        ("a.jsonl", write_jsonl),
        ("a.ndjson", write_jsonl),
        ("a.jsonl.gz", write_jsonl),
        ("a.parquet", write_parquet),
        ("a.v2.test.jsonl", write_jsonl),
    ],
)
def test_every_format_gives_the_same_examples(tmp_path: Path, name: str, write: Any) -> None:
    assert examples(write(tmp_path / name, ROWS)) == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, name: str) -> None:
    write: Any = write_jsonl if "jsonl" in name else write_csv
    assert examples(write(tmp_path / name, ROWS, "utf-8-sig")) == ROWS


def test_the_format_may_be_given_where_the_name_does_not_tell(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.txt", ROWS)
    assert "set `format`" in refused(path).message
    assert examples(path, format="jsonl") == ROWS


@pytest.mark.parametrize("name", ["rows", "rows.gz", "rows.xlsx", ".csvx"])
def test_a_name_that_tells_no_format_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"\.csv, \.tsv, \.tab, \.jsonl, \.ndjson, \.parquet"):
        format_of(Path(name))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no.csv") in refused(tmp_path / "no.csv").message
    assert "is no file" in refused(tmp_path).message


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert "has no rows" in refused(path).message


def test_a_heading_alone_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n")
    (tmp_path / "a.jsonl").write_text("\n  \n\n")
    write_parquet(tmp_path / "a.parquet", ROWS[:1])
    parquet.write_table(parquet.read_table(tmp_path / "a.parquet").slice(0, 0), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert "has no rows" in refused(tmp_path / name).message


def test_columns_map_to_fields(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"id": 1, "question": "why", "intent": 2}])
    assert examples(path, columns={"text": "question", "label": "intent"}) == [{"text": "why", "label": 2}]


def test_a_second_sentence_is_taken_where_there_is_one(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "text_pair": "b", "label": 1}])
    assert examples(path) == [{"text": "a", "text_pair": "b", "label": 1}]
    path = write_jsonl(tmp_path / "b.jsonl", [{"premise": "a", "hypothesis": "b", "label": 1}])
    columns = {"text": "premise", "text_pair": "hypothesis"}
    assert examples(path, columns=columns) == [{"text": "a", "text_pair": "b", "label": 1}]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_field_that_may_be_left_out_may_be_null(tmp_path: Path, name: str) -> None:
    write: Any = {"v": write_csv, "l": write_jsonl, "t": write_parquet}[name[-1]]
    path = write(tmp_path / name, [{"text": "a", "text_pair": None, "label": 1}, {"text": "b", "text_pair": None, "label": 0}])
    assert examples(path) == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    path = write(tmp_path / name, [{"text": "a", "text_pair": None, "label": 1}, {"text": "b", "text_pair": "c", "label": 0}])
    assert "row 2 has a column 'text_pair', and row 1 has none" in refused(path).message
    path = write(tmp_path / name, [{"text": "a", "text_pair": "c", "label": 1}, {"text": "b", "text_pair": None, "label": 0}])
    assert "row 2: column 'text_pair' must be text that is not empty" in refused(path).message


def test_a_column_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"question": "why", "label": 2}])
    error = refused(path, columns={"text": "qestion"})
    assert "no column 'qestion'; its columns are 'question', 'label'" in error.message
    assert "[data.NAME.columns]" in error.message
    assert error.detail["missing"] == ["qestion"]


def test_what_a_task_needs_is_said_with_the_columns_that_are_there(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"question": "why", "intent": 2}])
    message = refused(path).message
    assert "text-classification needs: text and label" in message
    assert "'question', 'intent'" in message
    assert "text and label" not in refused(path, "causal-lm", None).message
    assert "text or prompt and completion" in refused(path, "causal-lm", None).message


def test_a_field_that_the_task_does_not_have_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ROWS)
    message = refused(path, columns={"tetx": "text"}).message
    assert "has no field tetx; its fields are label, text, text_pair" in message


def test_a_language_model_takes_text_or_prompt_and_completion(tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": "to be"}])
    assert examples(text, "causal-lm", None) == [{"text": "to be"}]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "2+2?", "completion": "4"}])
    assert examples(pairs, "causal-lm", None) == [{"prompt": "2+2?", "completion": "4"}]


def test_a_mapping_says_which_of_two_ways_is_meant(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "whole", "q": "2+2?", "a": "4"}])
    assert examples(path, "causal-lm", None) == [{"text": "whole"}]
    assert examples(path, "causal-lm", None, columns={"prompt": "q", "completion": "a"}) == [{"prompt": "2+2?", "completion": "4"}]


def test_a_line_that_is_no_json_has_its_number_blank_lines_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 0}\n\n{"text": "b", "label": }\n')
    error = refused(path)
    assert "a.jsonl line 3 is no JSON" in error.message
    assert error.detail["line"] == 3
    path.write_text('{"text": "a", "label": 0}\n["b", 1]\n')
    assert "a.jsonl line 2 is no JSON object" in refused(path).message
    path.write_text("[" * 100_000)
    assert "a.jsonl line 1 is no JSON" in refused(path).message


@pytest.mark.parametrize("row", ["only one", "one,1,too many"])
def test_a_csv_row_with_another_number_of_columns_has_its_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'text,label\n"two\nlines",1\n{row}\n')
    error = refused(path)
    assert "a.csv line 4: the row has not as many columns" in error.message
    assert error.detail["line"] == 4


def test_a_csv_quote_that_never_ends_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"never ends,1\n')
    assert "cannot be read" in refused(path).message


def damage(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - b for b in data[middle : middle + 20]) + data[middle + 20 :]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("spoil", [lambda d: d[: len(d) // 2], damage, lambda d: b"no gzip at all"], ids=["cut", "damaged", "no gzip"])
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str, spoil: Any) -> None:
    rows = [{"text": f"row {i} of a file that takes a few kilobytes {i**5}", "label": i % 3} for i in range(500)]
    write: Any = write_jsonl if "jsonl" in name else write_csv
    path = write(tmp_path / name, rows)
    path.write_bytes(spoil(path.read_bytes()))
    assert name in refused(path).message


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_text_that_is_not_utf_8_is_refused(tmp_path: Path, name: str) -> None:
    text = '{"text": "m\u00fcll", "label": 1}\n' if name.endswith("jsonl") else "text,label\nm\u00fcll,1\n"
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert "cannot be read" in refused(tmp_path / name).message


@pytest.mark.parametrize("spoil", [lambda d: d[:-20], lambda d: b"PAR1" + bytes(100), lambda d: b""], ids=["cut", "zeros", "empty"])
def test_a_damaged_parquet_file_is_refused(tmp_path: Path, spoil: Any) -> None:
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    path.write_bytes(spoil(path.read_bytes()))
    assert "no Parquet file, or it is damaged" in refused(path).message


@pytest.mark.parametrize("label", [-1, 3, "3", "-1"])
def test_a_label_outside_the_range_has_its_row_and_the_range(tmp_path: Path, label: Any) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], {"text": "b", "label": label}])
    assert f"a.jsonl row 2: label {label} is outside 0…2, the range of the run's 3 labels" in refused(path).message


@pytest.mark.parametrize("label", ["card", "", None, 1.5, "1.5", True, False, [1], {"a": 1}, "1_0", "9" * 5000])
def test_a_label_that_is_no_whole_number_is_refused(tmp_path: Path, label: Any) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "b", "label": label}])
    assert "a.jsonl row 1: the label must be a whole number" in refused(path, num_labels=20).message


def test_a_boolean_column_of_a_parquet_file_is_no_label(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"text": "b", "label": True}])
    assert "must be a whole number, not True" in refused(path).message


def test_label_names_become_their_index_and_numbers_stay(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "loan"}, {"text": "b", "label": "card"}, {"text": "c", "label": 1}, {"text": "d", "label": "0"}]
    found = examples(write_jsonl(tmp_path / "a.jsonl", rows), num_labels=2, label_names=["card", "loan"])
    assert [e["label"] for e in found] == [1, 0, 1, 0]
    path = write_jsonl(tmp_path / "b.jsonl", [{"text": "a", "label": "Loan"}])
    assert "not 'Loan'" in refused(path, num_labels=2, label_names=["card", "loan"]).message


def test_names_that_look_like_numbers_are_names_first(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"text": "a", "label": "1"}, {"text": "b", "label": "5"}])
    assert [e["label"] for e in examples(path, num_labels=2, label_names=["5", "1"])] == [1, 0]


@pytest.mark.parametrize("text", ["", "  \n", None, 7, ["a"]])
def test_empty_text_is_refused_with_its_row_and_column(tmp_path: Path, text: Any) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0] | {"q": "good"}, {"q": text, "label": 0}])
    message = refused(path, columns={"text": "q"}).message
    assert "a.jsonl row 2: column 'q' must be text that is not empty" in message


def test_a_prompt_may_be_empty_a_completion_may_not(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "", "completion": "once upon a time"}])
    assert examples(path, "causal-lm", None)[0]["prompt"] == ""
    path = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "p", "completion": " "}])
    assert "column 'completion'" in refused(path, "causal-lm", None).message


def test_a_row_that_lacks_a_column_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], {"label": 1}])
    assert "row 2: column 'text'" in refused(path).message


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\nbroken\n')
    rows = read_rows(path)
    assert next(rows) == {"text": "a"}
    with pytest.raises(DataError, match="line 2"):
        next(rows)
