"""Blobs, uploads, an agent's cache and its outbox on volumes of their own: a run goes through all the same. And starts and writes where there is no room."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fedcybgd.agent import approval, credentials
from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.settings import ONLY, Home
from fedcybgd.coordinator.home import occupied
from fedcybgd.coordinator.serve import prepare_home
from fedcybgd.coordinator.settings import Settings
from tests.support.light import LightAgent
from tests.support.live import LiveCoordinator
from tests.support.visits import run_file
from tests.support.volumes import fill, small_volume, two_volumes


@pytest.mark.parametrize("kind", ["simulated", "real"])
def test_a_run_across_volumes(kind: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_volumes(kind, tmp_path, monkeypatch) as (one, other):
        (one / "coordinator").mkdir()
        for name, target in (("coordinator/blobs", "blobs"), ("agent/cache", "cache"), ("agent/residuals", "residuals")):
            (other / target).mkdir()
            (one / name).parent.mkdir(exist_ok=True)
            (one / name).symlink_to(other / target)
        live = LiveCoordinator(one / "coordinator")
        live.add_model("bert", bert)
        agent = LightAgent(live, one / "agent")
        spec = run_file("bert", [], schedule={"cycles": 2}, compression={"policy": "int8"}, delta={"codec": "int4", "error_feedback": True})
        run = live.create_run(spec | {"agents": [agent.name]}, start=True)["name"]
        while live.state_of(run) == "running":
            if (assignment := agent.claim(run, wait=0.3)) is not None:
                agent.visit(assignment)
        view = live.operator.get(f"/runs/{run}")
        live.stop()
        assert (view["state"], view["rounds_done"]) == ("completed", 4)
        assert all(b["version"] for b in view["blocks"] if b["trained"])
        assert list((other / "residuals").rglob("*.safetensors"))


def test_a_start_on_a_full_disk_says_so_in_a_line(tmp_path: Path) -> None:
    """After a kill: its database can be read, and what is written first does not fit."""
    with small_volume(tmp_path, 2 << 20) as home:
        with occupied(settings := Settings(home=home)):
            prepare_home(settings)
        with closing(sqlite3.connect(home / "coordinator.db")) as held:  # so the files beside it stay, as those of who was killed
            held.execute("SELECT name FROM sqlite_master").fetchone()
            fill(home)
            words = [sys.executable, "-m", "fedcybgd.coordinator.cli", "serve", "--home", str(home), "--port", "0"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert "coordinator.db is full; free space" in said
    assert said.endswith("[disk_full]")


def test_on_a_full_disk_no_file_of_an_agent_is_half_written(tmp_path: Path) -> None:
    with small_volume(tmp_path, 1 << 20) as volume:
        home = Home(volume / "agent")
        home.ready()
        before = f'coordinator = "http://127.0.0.1:1"\n\n[data]\npath = "/rows.csv"\nruns = ["a"]\n{"# mine" * 3000}\n'
        home.config.write_text(before)
        ballast = fill(volume)
        with pytest.raises(ConfigError) as full:
            home.ready()
        assert (full.value.code, sorted(home.path.iterdir())) == ("disk_full", [home.config])
        os.truncate(ballast, ballast.stat().st_size - 8192)
        with pytest.raises(ConfigError) as full:
            approval._replace(home, before, approval.with_run(before, ONLY, "b"))
        assert full.value.code == "disk_full"
        with pytest.raises(OSError, match="policy"):
            credentials.write_whole(home.policy, "# a rule\n" * 3000, 0o666)
        assert (home.config.read_text(), sorted(home.path.iterdir())) == (before, [home.config])
