"""How a program ends: what it cannot write is told in a line, whatever it is, and Ctrl-C in none."""

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
