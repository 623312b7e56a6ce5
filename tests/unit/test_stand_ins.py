"""What lies in the place of a file (a pointer, a page, another format) is called what it is, wherever it is met."""

import gzip
import json
from pathlib import Path

import pytest

from fedcybgd.client.errors import FileUnusable
from fedcybgd.client.model_files import files_of
from fedcybgd.coordinator.domain.jobs.payloads import ImportPayload
from fedcybgd.coordinator.engine.import_model import import_model
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.shared.contract.errors import DataError, FedError, HeaderError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.safetensors_header import pack_header, read_header
from fedcybgd.shared.files.stand_ins import pointer, stand_in
from fedcybgd.shared.files.tables import read_examples
from tests.support.visits import copy_of

ROWS = b'{"text": "a", "label": 0}\n'
POINTERS = {
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "git lfs pull": b"\xef\xbb\xbfversion https://hawser.github.com/spec/v1\r\noid sha256:0\r\nsize 3\r\n",
    "git-lfs pointer": b"version http://git-media.io/v/2\noid 1\n",
    "git annex get": b"/annex/objects/SHA256E-s12--ab.safetensors\n",
    "git-annex": b"../.git/annex/objects/xx/yy/SHA256E-s12--ab/SHA256E-s12--ab\n",
    "symbolic link": b"../../blobs/0123456789abcdef",
    "page": b"\n<!DOCTYPE html><html>Sign in</html>",
    "web server": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
}
OTHERS = {
    "gzip": gzip.compress(b"x" * 100), "zip archive": b"PK\x03\x04" + bytes(50), "GGUF": b"GGUF\x03" + bytes(50), "HDF5": b"\x89HDF\r\n\x1a\n",
    "zeros": bytes(1000), "'Entry not found'": b"Entry not found",
}  # fmt: skip


@pytest.mark.parametrize("said", [*POINTERS, *OTHERS])
def test_weights_that_are_none_are_called_what_they_are(said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((POINTERS | OTHERS)[said])
    with pytest.raises(HeaderError) as refused:
        read_header(path)
    assert said in refused.value.message
    assert refused.value.code == "safetensors_invalid"


def test_weights_that_are_cut_short_are_not_called_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for size in (9, 20, 70):
        path.write_bytes((pack_header([("a", "F32", (4,))]) + bytes(16))[:size])
        with pytest.raises(HeaderError) as refused:
            read_header(path)
        assert "it is text" not in refused.value.message
    assert stand_in(b"") is None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("said", POINTERS)
def test_a_model_is_refused_with_it_where_it_is_added_and_before_it_is_uploaded(said: str, name: str, bert: Path, tmp_path: Path) -> None:
    folder = copy_of(bert, tmp_path / "model")
    (folder / name).write_bytes(POINTERS[said])
    with pytest.raises(FedError) as refused:
        import_model(LocalBlobStore(tmp_path / "blobs"), ImportPayload(source=str(folder)))
    with pytest.raises(FileUnusable) as told:
        files_of(folder)
    for error in (refused.value, told.value):
        assert said in str(error)
        assert name in str(error)


@pytest.mark.parametrize("said", POINTERS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv", "rows.parquet", "rows.jsonl.gz"])
def test_rows_that_are_none_are_called_what_they_are(said: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(POINTERS[said])
    assert said in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", gzip.compress(ROWS), "packed with gzip; name it .gz"),
        ("rows.jsonl.gz", gzip.compress(gzip.compress(ROWS)), "packed with gzip, a second time"),
        ("rows.csv.gz", gzip.compress(b"PAR1" + bytes(40)), "Parquet"),
        ("rows.jsonl.gz", gzip.compress(b"<!DOCTYPE html><p>Sign in"), "web server"),
        ("rows.jsonl", ROWS.decode().encode("utf-16-be"), "line 1 has NUL characters: perhaps it is UTF-16"),
        (
            "rows.tsv",
            b'text\tlabel\nso\t1\n"so" said he\t1\n',
            "line 3 cannot be read: '\t' expected after '\"'; where quotation marks are text",
        ),
        ("rows.csv", b'text,label\n"so \\"it is\\", he said",1\n', "line 2 cannot be read"),
        ("rows.csv", b"PK\x03\x04" + bytes(40), "zip archive"),
        ("rows.csv", b"PAR1" + bytes(40), "Parquet"),
        ("rows.jsonl", b"\x28\xb5\x2f\xfd" + bytes(40), "zstd"),
        ("rows.jsonl.zst", b"", "unpack it first"),
        ("rows.xlsx", b"", "save it as CSV"),
        ("rows.json", b"[]", "each line is an object"),
        ("rows.jsonl", json.dumps([json.loads(ROWS)]).encode(), "the file no list"),
        ("rows.jsonl", json.dumps([json.loads(ROWS)], indent=1).encode(), "the file no list"),
        ("rows.jsonl", b'{"text": "a", "label": 0, "label": 2}\n', "line 1 names 'label' twice"),
        ("rows.jsonl", ROWS + b'{"text": "a", "label": 0, "more": {"x": 1, "x": 2}}\n', "line 2 names 'x' twice"),
    ],
)
def test_other_formats_and_doubled_names_are_said(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


def refusal(path: Path) -> str:
    spec = TaskSpec(task="text-classification", max_length=8, num_labels=3)
    with pytest.raises(DataError) as refused:
        read_examples(path, spec, {})
    assert refused.value.code == "data_invalid"
    return refused.value.message


def test_rows_that_only_look_like_it_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("version,text,label\nhttps://git-lfs.github.com/,<html>,1\n")
    spec = TaskSpec(task="text-classification", max_length=8, num_labels=3)
    assert [row["text"] for row in read_examples(path, spec, {})] == ["<html>"]
    assert pointer(b"version 2 of the text") is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda f: (f / "model.safetensors").rename(f / "model.gguf"), "llama.cpp"),
        (lambda f: (f / "model.safetensors").rename(f / "model.onnx"), "ONNX"),
        (lambda f: (f / "model.safetensors").rename(f / "tf_model.h5"), "TensorFlow"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "is a pickle"),
        (lambda f: _below(f, "checkpoint-500"), "checkpoint-500 inside it has one"),
        (lambda f: _below(f, "snapshots/abc"), "snapshots/abc inside it has one"),
        (lambda f: ((f / "config.json").unlink(), (f / "adapter_config.json").write_text("{}")), "merge it first"),
        (lambda f: (f / "config.json").write_text(""), "it is empty"),
        (lambda f: (f / "config.json").write_text("Access to model x is restricted."), "begins with 'Access to model"),
    ],
)  # fmt: skip
def test_a_directory_that_holds_something_else_is_told_what_to_do(made: object, said: str, bert: Path, tmp_path: Path) -> None:
    folder = copy_of(bert, tmp_path / "model")
    made(folder)  # type: ignore[operator]
    with pytest.raises(FedError) as refused:
        import_model(LocalBlobStore(tmp_path / "blobs"), ImportPayload(source=str(folder)))
    assert said in refused.value.message
    assert refused.value.code == "model_refused"


def _below(folder: Path, where: str) -> None:
    files = [path for path in folder.iterdir() if path.is_file()]
    (folder / where).mkdir(parents=True)
    for path in files:
        path.rename(folder / where / path.name)


def test_the_path_of_a_file_is_told_to_be_one(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(FedError, match="is a file: give the directory"):
        import_model(LocalBlobStore(tmp_path / "blobs"), ImportPayload(source=str(bert / "model.safetensors")))


def test_an_upload_that_would_be_refused_in_the_end_is_refused_before(bert: Path, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    for name, change, said in (
        ("adapter", lambda f: (f / "adapter_config.json").write_text("{}"), "merge it first"),
        ("code", lambda f: (f / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {}})), "foreign code"),
        ("quantized", lambda f: (f / "config.json").write_text(json.dumps({"text_config": {"quantization_config": {"bits": 4}}})), "quantized"),
        ("cut", lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]), "bytes where its header"),
        ("half", lambda f: ((f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"),
                            (f / "model.safetensors.index.json").write_text(json.dumps(index))), "missing: model-00002-of-00002"),
    ):  # fmt: skip
        folder = copy_of(bert, tmp_path / name)
        assert files_of(folder)
        change(folder)
        with pytest.raises(FileUnusable, match=said):
            files_of(folder)


def test_what_is_uploaded_is_what_will_be_read(bert: Path, tmp_path: Path) -> None:
    folder = copy_of(bert, tmp_path / "model")
    before = {path.name for path in files_of(folder)}
    (folder / "notes (copy).txt").write_text("of no tokenizer")
    (folder / "more.safetensors").write_bytes(pack_header([]))
    assert {path.name for path in files_of(folder)} == before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "more.safetensors"}))
    assert {path.name for path in files_of(folder)} == before | {"more.safetensors"}
