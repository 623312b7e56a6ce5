"""`fedcoord try`: a federation of real processes from a run file and rows; whatever happens, nothing of it is left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.e2e.conftest import spec, write_rows
from tests.support.processes import ENVIRONMENT, wait_for


def command(folder: Path, bert: Path, *words: str, steps: int) -> list[str]:
    values = spec("tried", steps=steps, cycles=1)
    values["evaluate"] = {"held_out": "held-out.jsonl", "every": "end"}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    write_rows(folder / "held-out.jsonl", 99, 32)
    write_rows(folder / "rows.jsonl", 1, 80)
    said = ["try", str(folder / "run.yaml"), "--data", str(folder / "rows.jsonl"), "--model", str(bert), "--agents", "2", "--threads", "1"]
    return [sys.executable, "-m", "fedcybgd.coordinator.cli", *said, *words]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where the command makes its temporary folder."""
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def processes(scratch: Path) -> list[list[str]]:
    """Command lines of those that work there."""
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in found if any(str(scratch) in word for word in words)]


def agents_of(scratch: Path) -> bool:
    return any("fedcybgd.agent.cli" in words for words in processes(scratch))


def nothing_is_left(scratch: Path) -> bool:
    return not list(scratch.glob("fedcoord-try-*")) and not processes(scratch)


def test_a_run_is_tried_while_agents_are_killed(tmp_path: Path, scratch: Path, bert: Path) -> None:
    done = subprocess.run(
        command(tmp_path, bert, "--split", "dirichlet:0.5", "--chaos", "--json", "--export", str(tmp_path / "out"), steps=40),
        capture_output=True, text=True, timeout=240, env={**os.environ, **ENVIRONMENT, "TMPDIR": str(scratch)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["run"]["state"], report["run"]["rounds_done"]) == ("completed", 2)
    assert len(report["run"]["evaluations"]) == 1
    assert sum(report["agents"].values()) == 80
    assert all(report["agents"].values())
    assert report["killed"], "at least the first that trains"
    assert f"{report['killed'][0]} is started again" in done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert nothing_is_left(scratch)


def test_nothing_is_left_of_one_that_is_interrupted_while_agents_come_up(tmp_path: Path, scratch: Path, bert: Path) -> None:
    with (tmp_path / "said").open("w") as said:
        tried = subprocess.Popen(
            command(tmp_path, bert, steps=20), stdout=said, stderr=said, env={**os.environ, **ENVIRONMENT, "TMPDIR": str(scratch)},
            # Where the tests run in the background of a shell they ignore it, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    try:
        wait_for(lambda: agents_of(scratch) or tried.poll() is not None, limit=120)
        assert not nothing_is_left(scratch), (tmp_path / "said").read_text()
        tried.send_signal(signal.SIGINT)
        assert tried.wait(60) == 130, (tmp_path / "said").read_text()
    finally:
        tried.kill()
    wait_for(lambda: nothing_is_left(scratch), limit=10)
