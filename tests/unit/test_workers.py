"""Tests that are done by several processes are told of as those of one: what fails, what kills its process, what warns, what is torn down."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGIN = """
from tests.workers import Workers

def pytest_configure(config):
    config.pluginmanager.register(Workers(3))
"""
MODULE = """
import os, warnings
from pathlib import Path
import pytest

@pytest.fixture(scope="module")
def made():
    yield os.getpid()
    Path("torn-down").open("a").write("once\\n")

def test_first(made, tmp_path):
    Path("made").open("a").write(f"{made}\\n")

def test_fails(made):
    print("what it printed")
    assert made == 0, "what it said"

def test_warns(made):
    warnings.warn("careful")
    Path("made").open("a").write(f"{made}\\n")

def test_is_left_out():
    pytest.skip("no reason")
"""
DEADLY = """
import os, signal
from pathlib import Path

def test_before():
    pass

def test_dies():
    os.kill(os.getpid(), signal.SIGKILL)

def test_after():
    Path("went-on").touch()
"""


def test_what_several_processes_did_is_told_as_if_one_had(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "test_a.py").write_text(MODULE)
    (tmp_path / "test_b.py").write_text(DEADLY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # some take seconds to import
    command = [sys.executable, "-m", "pytest", "-q", "-rs"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    assert "2 failed, 4 passed, 1 skipped, 1 warning" in told
    for line in (
        "AssertionError: what it said",
        "what it printed",
        "UserWarning: careful",
        "no reason",
        "the process died at it, with status -9",
    ):
        assert line in told, told
    assert (tmp_path / "went-on").exists(), "another process did what was left"
    processes = (tmp_path / "made").read_text().split()
    assert len(processes) == 2
    assert len(set(processes)) == 1, "what a module makes is made once"
    assert (tmp_path / "torn-down").read_text() == "once\n"
