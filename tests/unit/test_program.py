"""How a program ends: what it cannot write is told in a line, whatever it is, and Ctrl-C in none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedcybgd.shared.host import program
from fedcybgd.shared.host.exits import Exit


@pytest.mark.parametrize("package", ["coordinator", "agent"])
def test_standard_output_without_room_is_told_in_a_line(package: str) -> None:
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", f"fedcybgd.{package}.cli", "--help"]
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "error: standard output has no room for what is to be written: No space left on device [disk_full]\n"


@pytest.mark.parametrize("package", ["coordinator", "agent"])
def test_python_without_docstrings_is_told_at_once(package: str) -> None:
    words = [sys.executable, "-m", f"fedcybgd.{package}.cli", "--version"]
    for level, status in (("1", 0), ("2", 1)):
        ended = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONOPTIMIZE": level})
        assert ended.returncode == status, ended.stderr
    assert ended.stderr.replace("\n", " ").endswith("[docstrings_left_out] ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_character_that_the_encoding_of_a_terminal_lacks_ends_no_command(encoding: str) -> None:
    said = "import sys; from fedcybgd.shared.host import program; program.ended(lambda: print('\\u2026 \\u65e5\\udcff'))"
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode(encoding).startswith("\u2026 \u65e5" if encoding == "utf-8" else ("\u2026 \\u65e5", "\\u2026 \\u65e5"))


def test_who_hears_no_more_is_told_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-m", "fedcybgd.coordinator.cli", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


def test_what_fails_because_of_ctrl_c_ends_as_ctrl_c(capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("cannot operate on what is closed")

    with pytest.raises(SystemExit) as end:
        program.ended(interrupted)
    assert end.value.code == Exit.INTERRUPTED
    assert capfd.readouterr().err == ""


def test_what_fails_by_itself_keeps_its_traceback() -> None:
    def failed() -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        program.ended(failed)
