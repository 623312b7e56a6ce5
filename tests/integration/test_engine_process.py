"""The engine as the process that it is in earnest: payloads, results and errors cross its boundary, and its death is not the job's fault."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from fedcybgd.coordinator.parts import local
from tests.support.live import LiveCoordinator
from tests.support.processes import ENVIRONMENT, wait_for
from tests.support.visits import Hand, events, finish, last_visit, settled, start_run, versions


def fork_servers(process: psutil.Process) -> list[psutil.Process]:
    """The process that its engines are forked from, once it is there."""
    return [child for child in process.children() if "multiprocessing.forkserver" in " ".join(child.cmdline())]


def fork_server() -> psutil.Process:
    (found,) = fork_servers(psutil.Process())
    return found


def test_a_run_through_the_processes_of_the_lanes(coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path) -> None:
    live = coordinators(parts=local)
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    live.operator.post("/models", {"name": "spoilt", "source": str(spoilt)})
    refused = wait_for(lambda: (m := live.operator.get("/models/spoilt"))["state"] == "failed" and m, limit=150)
    assert "config.json" in refused["reason"], "an error of ours comes over with its words"
    live.add_model("bert", bert)
    hand = Hand(live)
    run = start_run(live, "bert", [hand], schedule={"blocks": ["layers"], "max_attempts": 5})
    first = hand.take(run)
    hand.deliver(first, {name: torch.full_like(t, float("nan")) for name, t in hand.delta(first).items()})
    wait_for(lambda: "delta_rejected" in events(live, run))
    assert versions(live, run)["layers.0"] == 0
    live.operator.post(f"/runs/{run}/cancel")

    for killed in (fork_server().children(), [fork_server()]):
        run = start_run(live, "bert", [hand])
        engines = fork_server().children()
        assert len(engines) == 2
        for process in killed:
            process.kill()
        finish(live, run, [hand])
        assert settled(live, run)["state"] == "completed"
        assert last_visit(live, run)["attempt"] == 1
        assert (versions(live, run)["layers.0"], versions(live, run)["layers.1"]) == (1, 1)
        wait_for(lambda engines=engines: not any(engine.is_running() for engine in engines))


def test_who_is_stopped_while_engines_come_up_says_nothing_of_them_and_leaves_none(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "fedcybgd.coordinator.cli", "serve", "--home", str(tmp_path / "home"), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--ready-file", str(ready)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    try:
        wait_for(lambda: ready.exists() and fork_servers(psutil.Process(process.pid)))
        process.terminate()
        said, _ = process.communicate(timeout=60)  # until nobody is left who could say anything
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in said, said
    assert "Warning" not in said, said
