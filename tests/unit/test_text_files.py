"""Files of any separator and encoding are read, and what is odd in them is said with its row and column."""

import gzip
import json
import os
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
import yaml
from pydantic import ValidationError

from fedcybgd.agent.check import _data
from fedcybgd.agent.settings import DataSection
from fedcybgd.shared.contract.assignments import ReturnRequest
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files import parquet_rows, text_files
from fedcybgd.shared.files.table_format import TableFormat
from fedcybgd.shared.files.tables import read_examples, read_rows
from tests.support.tables import ROWS, examples, refused, write_csv, write_jsonl, write_parquet


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.tsv", "\t"), ("a.TAB", "\t")])
def test_the_separator_is_found_out_where_only_one_fits(tmp_path: Path, name: str, separator: str) -> None:
    path = tmp_path / name
    path.write_text(f'id{separator}text{separator}label\n1{separator}"a;b,\tc|"{separator}1\n')
    assert examples(path) == [{"text": "a;b,\tc|", "label": 1}]


@pytest.mark.parametrize("heading", ["text,label;note", "text,label\tx"])
def test_a_comma_is_the_separator_where_it_is_one_of_several(tmp_path: Path, heading: str) -> None:
    (tmp_path / "a.csv").write_text(f"{heading}\nwords,1;2\n")
    assert next(iter(read_rows(tmp_path / "a.csv")))["text"] == "words"


def test_a_separator_that_could_be_two_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text;label\tnote\nwords;1\t2\n")
    assert "a semicolon or a tab; say which with `separator`" in refused(path).message
    assert list(next(iter(read_rows(path, TableFormat(separator=";"))))) == ["text", "label\tnote"]


def test_a_sentence_is_one_column_though_it_has_semicolons(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none; two\n")
    assert examples(tmp_path / "a.csv", "causal-lm", None) == [{"text": "one; two"}]


def test_a_line_above_the_heading_may_say_the_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + b"sep=;\r\ntext;label\r\nfirst, second;1\r\n")
    assert examples(path) == [{"text": "first, second", "label": 1}]


def test_quotation_marks_may_be_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"so he said\t1\n5" disk\t0\n')
    assert "cannot be read" in refused(path).message
    assert [e["text"] for e in examples(path, quotes=False)] == ['"so he said', '5" disk']


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    write: Any = write_jsonl if "jsonl" in name else write_csv
    assert examples(write(tmp_path / name, ROWS, encoding)) == ROWS


def test_a_mark_in_either_order_of_bytes(tmp_path: Path) -> None:
    for order, mark in (("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
        path = write_csv(tmp_path / f"{order}.csv", ROWS, order)
        assert "is UTF-16" in refused(path).message
        assert examples(path, encoding=order) == ROWS
        path.write_bytes(mark + path.read_bytes())
        assert examples(path) == examples(path, encoding="utf-16") == ROWS
        assert "begins with the byte-order mark of utf-16, but `encoding` says cp1252" in refused(path, encoding="cp1252").message


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp437", "shift_jis"])
def test_an_encoding_may_be_given(tmp_path: Path, encoding: str) -> None:
    rows = [{"text": "\u00fc" if encoding != "shift_jis" else "\u65e5\u672c", "label": 1}]
    path = write_csv(tmp_path / "a.csv", [{"text": "plain", "label": 0}, *rows], encoding)
    error = refused(path)
    assert "a.csv line 3, column 'text' cannot be read: it has bytes that mean nothing in UTF-8" in error.message
    assert "set `encoding`" in error.message
    assert error.detail["line"] == 3
    assert examples(path, encoding=encoding)[1:] == rows


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "rot13", "idna", "unicode_escape", "\0", ""])
def test_what_is_no_encoding_is_no_setting(encoding: str) -> None:
    with pytest.raises(ValidationError, match="encoding"):
        TableFormat(encoding=encoding)


@pytest.mark.parametrize("separator", ["", ";;", '"', "\n", "\0"])
def test_what_is_no_separator_is_no_setting(separator: str) -> None:
    with pytest.raises(ValidationError, match="separator"):
        TableFormat(separator=separator)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_field_of_a_megabyte_is_read(tmp_path: Path, name: str) -> None:
    write: Any = {"v": write_csv, "l": write_jsonl, "t": write_parquet}[name[-1]]
    rows = [{"text": "word " * 200_000, "label": 1}]
    assert examples(write(tmp_path / name, rows)) == rows


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz"])
def test_one_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LONGEST_ROW", 1000)
    data = (b"{}" if "jsonl" in name else b"text,label") + b"\n" + b"x" * 2000
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(DataError, match="line 2 is longer than 1,000 characters"):
        list(read_rows(tmp_path / name))


def test_an_archive_that_was_made_to_fill_a_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "RATIO_FROM", 1000)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n" + b"aaaaaaaaaaaaaaaaaaaaaaaaaa,1\n" * 100_000))
    assert "unpacks to more than 200 times its size" in refused(path).message


def shared(path: Path, value: str | bytes, rows: int, nested: bool = False) -> Path:
    """A Parquet file in which all rows have the same value: it is there once."""
    table = pyarrow.table({"text": [value] * rows, "label": [1] * rows})
    if nested:
        image = pyarrow.StructArray.from_arrays([pyarrow.array([value] * rows), pyarrow.nulls(rows, pyarrow.string())], ["bytes", "path"])
        table = pyarrow.table({"image": image, "label": [1] * rows})
    parquet.write_table(table, path, dictionary_pagesize_limit=1 << 30)
    return path


@pytest.mark.parametrize(("value", "nested"), [("x" * 100_000, False), (b"x" * 100_000, False), (b"x" * 100_000, True)])
def test_a_value_that_parquet_rows_share_is_in_memory_once(tmp_path: Path, value: str | bytes, nested: bool) -> None:
    path = shared(tmp_path / "a.parquet", value, 1000, nested)
    assert path.stat().st_size < 100_000
    before, most, rows = pyarrow.total_allocated_bytes(), 0, 0
    column = "image" if nested else "text"
    for row in read_rows(path, None, [column]):
        rows += 1
        assert row == {column: {"bytes": value, "path": None} if nested else value}
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert rows == 1000
    assert most < 5_000_000, "all rows of the batch have 100 MB"


def test_a_parquet_file_that_was_made_to_fill_a_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared(tmp_path / "a.parquet", "word " * 1000, 1000)
    monkeypatch.setattr(parquet_rows, "BYTES_AT_ONCE", 5001)
    assert len(examples(path)) == 1000, "row by row"
    monkeypatch.setattr(parquet_rows, "RATIO_FROM", 1_000_000)
    error = refused(path)
    assert error.code == "data_invalid"
    assert "unpacks to more than 200 times its size" in error.message
    monkeypatch.setattr(parquet_rows, "BYTES_AT_ONCE", 4999)
    assert "a.parquet row 1 has 5,000 bytes; at most 4,999 are read" in refused(path).message


def test_a_parquet_column_of_lists_is_refused_before_one_of_them_is_read(tmp_path: Path) -> None:
    """A row of a few bytes may have a billion zeros."""
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [[1] * 1_000_000], "more": [[1]]}), tmp_path / "a.parquet")
    error = refused(tmp_path / "a.parquet")
    assert (error.code, error.detail["column"]) == ("data_invalid", "label")
    assert "column 'label' has lists; it must be a whole number, text or an image" in error.message
    assert list(read_rows(tmp_path / "a.parquet", None, ["text"])) == [{"text": "a"}], "others do not matter"


@pytest.mark.parametrize("beside", [[[1, 2], [3]], [{"a": 1}, {"a": 2}], ["x", "y"], [2**62] * 2])
def test_a_parquet_column_is_not_taken_for_the_one_whose_name_begins_so(tmp_path: Path, beside: list[Any]) -> None:
    kind = pyarrow.timestamp("us") if beside[0] == 2**62 else None
    columns = {"text": ["a", "b"], "text.tokens": pyarrow.array(beside, kind), "label.names": pyarrow.array(beside, kind), "label": [1, 0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert examples(tmp_path / "a.parquet") == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    assert list(read_rows(tmp_path / "a.parquet", None, ["text"])) == [{"text": "a"}, {"text": "b"}], "nor read with it"
    (finding,) = _data("default", DataSection(path="a.parquet"), tmp_path / "a.parquet")
    assert (finding.ok, "2 rows, columns text, text.tokens" in finding.found) == (True, True), "nor by a check"


@pytest.mark.parametrize("kind", [pyarrow.timestamp("us"), pyarrow.duration("ms"), pyarrow.timestamp("us", tz="Mars/Phobos")])
def test_a_date_that_python_has_not_is_named_and_the_file_is_not_called_damaged(tmp_path: Path, kind: Any) -> None:
    parquet.write_table(pyarrow.table({"text": ["a"], "label": pyarrow.array([2**62], kind)}), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet").message.startswith("a.parquet row 1: column 'label' has a value that cannot be read: ")


@pytest.mark.parametrize("text", ["gamma \ud83d", "\udc00", "a\ud83db"])
def test_half_an_emoji_has_its_row_and_column(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({"text": text, "label": 1}) + "\n")
    error = refused(path)
    assert "a.jsonl row 2: column 'text' holds half a character" in error.message
    assert (error.detail["row"], error.detail["field"]) == (2, "text")
    error.message.encode()


def test_what_is_said_of_half_an_emoji_in_a_name_can_be_sent(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"\\ud83d": "a", "label": 1}\n')
    for error in (refused(tmp_path / "a.jsonl"), refused(tmp_path / os.fsdecode(b"\xff.jsonl"))):
        assert ReturnRequest(attempt=1, reason="data_invalid", message=error.message).message == error.message


def test_a_whole_emoji_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude00", "label": 1}\n')
    assert examples(tmp_path / "a.jsonl") == [{"text": "\U0001f600", "label": 1}]


def test_a_column_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,text\na,1,b\n")
    assert "the heading names column 'text' twice" in refused(tmp_path / "a.csv").message
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(twice, tmp_path / "a.parquet")
    assert "two columns are named 'text'" in refused(tmp_path / "a.parquet").message


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_a_column_is_found_in_whichever_form_its_letters_are_written(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / f"a.{write.__name__.removeprefix('write_')}", [{"gro\u0308\u00dfe": "a", "label": 1}])
    columns = {"text": "gr\u00f6\u00dfe"}
    assert read_examples(path, TaskSpec(task="text-classification", max_length=8, num_labels=2), columns) == [{"text": "a", "label": 1}]
    assert next(_data("default", DataSection(path=path.name, columns=columns), path)).ok


def test_columns_of_a_parquet_file_that_are_not_used_are_not_read(tmp_path: Path) -> None:
    odd = pyarrow.array([1], pyarrow.timestamp("ns"))  # nanoseconds have no type in Python
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [1], "when": odd}), tmp_path / "a.parquet")
    assert examples(tmp_path / "a.parquet") == [{"text": "a", "label": 1}]


def test_text_of_a_parquet_file_that_is_no_utf_8_has_its_row_and_column(tmp_path: Path) -> None:
    bad = pyarrow.array([b"good", b"m\xfcll"], pyarrow.binary())
    parquet.write_table(pyarrow.table({"text": bad, "label": [0, 1]}), tmp_path / "bytes.parquet")
    assert "bytes.parquet row 2: column 'text' must be text" in refused(tmp_path / "bytes.parquet").message
    parquet.write_table(pyarrow.table({"text": bad.view(pyarrow.string()), "label": [0, 1]}), tmp_path / "text.parquet")
    assert "text.parquet row 2: column 'text' has bytes that mean nothing in UTF-8" in refused(tmp_path / "text.parquet").message


def test_a_second_sentence_that_comes_later_is_not_dropped_in_silence(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 1}, {"text": "a", "text_pair": "b", "label": 1}])
    assert "row 2 has a column 'text_pair', and row 1 has none" in refused(path).message


def test_advice_names_the_setting_of_the_reader(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"question": "why", "intent": 2}])
    spec = TaskSpec(task="text-classification", num_labels=3, max_length=8)
    for columns, said in (({}, "Map them in evaluate.columns, as in: {text: question}"), ({"text": "q"}, "Set evaluate.columns to match")):
        with pytest.raises(DataError) as error:
            read_examples(path, spec, columns, mapped_in="evaluate.columns")
        assert said in error.value.message
        assert "data.columns" not in error.value.message


@pytest.mark.parametrize("depth", [900, 3000, 100_000])
def test_a_value_that_is_nested_deeply_is_refused_with_its_place(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.jsonl"
    for field in ("text", "label"):
        row = {"text": '"a"', "label": "1"} | {field: "[" * depth + "]" * depth}
        path.write_text(f'{{"text": "a", "label": 1}}\n{{"text": {row["text"]}, "label": {row["label"]}}}\n')
        assert any(place in refused(path).message for place in ("row 2", "line 2"))


@pytest.mark.parametrize(("rows", "said"), [
    ("I left my card on the train,41\nwhere is my card,7\n", "41"), ("a fine film,positive\na bad one,negative\na good one,positive\n", "positive"),
    (f"{'so long ' * 20},x\nshort,y\n", "so long"), ("The cat sat.,good\nThe dog ran.,bad\n", "The cat sat."),
    ("I left it, on the train,41\nwhere is my card,7\n", "41"), ("where is my card,7\nI left it, on the train,41\n", "7"),
    ("a film,good\n\nso, so,bad\na play,good\n", "good"), ('a film,4\nso,2\n"a" play,3\n', "4"),
])  # fmt: skip
@pytest.mark.parametrize("columns", [{}, {"text": "question"}])
def test_a_csv_file_without_a_heading_is_told_of_it(tmp_path: Path, rows: str, said: str, columns: dict[str, str]) -> None:
    (tmp_path / "a.csv").write_text(rows)
    message = refused(tmp_path / "a.csv", columns=columns).message
    assert "seems to have no heading" in message
    assert said in message
    assert message.endswith(f"as in: {columns.get('text', 'text')},label")
    write_jsonl(tmp_path / "a.jsonl", [{"41": "a", "x": "41"}])
    assert "heading" not in refused(tmp_path / "a.jsonl").message, "of JSON every row has its names"


@pytest.mark.parametrize(("below", "said"), [("so, so,1\n", "not as many columns as the heading"), ('"a" play,1\n', "cannot be read")])
def test_rows_that_are_no_table_are_told_as_that_where_there_is_a_heading(tmp_path: Path, below: str, said: str) -> None:
    for rows in (below, f"a film,1\n{below}"):
        (tmp_path / "a.csv").write_text(f"text,label\n{rows}")
        assert said in refused(tmp_path / "a.csv").message


@pytest.mark.parametrize("name", ["my question", "what's up", "Frage: Text", 'the "text"', "$HOME"])
def test_advice_can_be_pasted_whatever_a_column_is_called(tmp_path: Path, name: str) -> None:
    path = write_csv(tmp_path / "a.csv", [{name: "why", "label": 2}])
    spec = TaskSpec(task="text-classification", num_labels=3, max_length=8)

    def advice(mapped_in: str) -> str:
        with pytest.raises(DataError) as error:
            read_examples(path, spec, {}, mapped_in=mapped_in)
        return error.value.message.partition("as in: ")[2]

    assert shlex.split(advice("--column")) == ["--column", f"text={name}"]
    assert yaml.safe_load(advice("evaluate.columns")) == {"text": name}
    assert tomllib.loads(advice("[data.NAME.columns]")) == {"text": name}


def test_advice_is_of_what_is_lacking_yet(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"question": "why", "intent": 2, "text": "x"}])
    assert 'as in: label = "question"' in refused(path).message
    assert 'as in: label = "intent"' in refused(path, columns={"text": "question"}).message
    path = write_csv(tmp_path / "b.csv", [{"nr": 1, "Unnamed: 0": 1, "row_id": 1, "question": "why", "label": 2}])
    assert 'as in: text = "question"' in refused(path).message
    assert 'as in: text = "id"' in refused(write_csv(tmp_path / "c.csv", [{"id": 1, "label": 2}])).message, "where there is no other"
