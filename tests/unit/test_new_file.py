"""What a command writes is in the file whole, or the file is as it was; nobody's file is written over unasked."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedcybgd.client.errors import FileUnusable
from fedcybgd.coordinator import cli
from fedcybgd.coordinator.commands.new_file import FileThere, new_file

AWAY = {"FEDCOORD_URL": "http://127.0.0.1:1", "FEDCOORD_OPERATOR_KEY": "fco_x"}
WRITES = [
    ["audit", "export", "FILE"],
    ["compare", "a", "--csv", "FILE"],
    ["compare", "a", "--svg", "FILE"],
    ["run", "provenance", "a", "-o", "FILE"],
]


@pytest.mark.parametrize("words", WRITES, ids=" ".join)
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_a_file_outlives_a_command_that_fails(tmp_path: Path, words: list[str], force: list[str]) -> None:
    file = tmp_path / "kept"
    file.write_text("years of work")
    done = CliRunner().invoke(cli.app, [word.replace("FILE", str(file)) for word in words] + force, env=AWAY)
    assert done.exception is not None
    assert isinstance(done.exception, FileThere) != bool(force)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert file.read_text() == "years of work"


def test_a_folder_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    away = tmp_path / "none" / "audit.jsonl"
    done = CliRunner().invoke(cli.app, ["audit", "export", str(away)], env=AWAY)
    assert isinstance(done.exception, FileUnusable)
    assert str(away) in done.exception.message


def test_what_was_there_is_replaced_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("old")
    with new_file(file, force=True) as writing:
        writing.write("new")
        writing.flush()
        assert file.read_text() == "old"
    assert file.read_text() == "new"
