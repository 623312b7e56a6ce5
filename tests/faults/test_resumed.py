"""What was cut is gone on with where it was: of what is counted between agent and coordinator at most one chunk has crossed twice."""

import time
from pathlib import Path

import pytest

from fedcybgd.agent.client import CHUNK
from tests.faults.proxy import Proxy, Rule
from tests.support.light import LightAgent, traffic
from tests.support.live import LiveCoordinator
from tests.support.models import tiny_llama
from tests.support.processes import wait_for
from tests.support.visits import run_file

HEADS = 4 * 1000
"""Bytes that the heads of so many requests, or answers, have together at the most."""


class Killed(Exception):
    """Where an agent would wait it is gone."""


def killed(_: float) -> None:
    raise Killed


def arrived(live: LiveCoordinator, run: str) -> int:
    return sum(amount for (_, _, kind), amount in traffic(live, run).items() if kind == "delta")


@pytest.mark.parametrize("dies", [False, True], ids=["goes on", "dies and begins again"])
def test_at_most_one_chunk_crosses_the_line_twice(live: LiveCoordinator, tmp_path: Path, dies: bool) -> None:
    """Three cuts on the way down, three on the way up; an agent that dies of each has only its home to go on with."""
    live.add_model(name := f"wide-{dies}", tiny_llama(tmp_path / "model", hidden_size=384, intermediate_size=1024))
    proxy = Proxy(int(live.url.rsplit(":", 1)[1]))
    agent = LightAgent(live, tmp_path / "home", url=proxy.url)
    schedule = {"cycles": 1, "blocks": ["layers.0"], "always": []}
    spec = run_file(name, [], schedule=schedule, task={"kind": "causal-lm", "max_length": 16}) | {"agents": [agent.name]}
    run = live.create_run(spec, start=True)["name"]
    assignment = agent.claim(run, wait=20)
    assert assignment is not None
    whole = next(block.packed for block in assignment.manifest.blocks if block.block == "layers.0")
    assert whole is not None
    assert whole.size > 4 * CHUNK
    proxy.set(Rule("cut_down", seconds=600, amount=3 * CHUNK // 2, requests=3, path=f"GET .*/shards/{whole.digest}"))
    proxy.set(Rule("cut_up", seconds=600, amount=3 * CHUNK // 2, requests=3, path="PUT .*/upload/"))
    pause = killed if dies else time.sleep
    agent.start(pause)
    while True:
        try:
            agent.visit(assignment)
            break
        except Killed:
            # What was let through lies in the coordinator's socket yet: an agent takes longer to begin again than this takes to be read.
            wait_for(lambda: arrived(live, run) == sum(sent for what, sent, _ in proxy.passed if what.startswith("PUT")))
            agent.start(pause)
    proxy.close()
    down = [received for what, _, received in proxy.passed if whole.digest in what]
    up = [(int(what.rpartition("offset=")[2]), sent) for what, sent, _ in proxy.passed if what.startswith("PUT")]
    assert (len(down), len(up)) == (4, 4), "each was cut three times"
    assert sum(down) <= whole.size + CHUNK + HEADS
    assert sum(sent for _, sent in up) <= sum(up[-1]) + CHUNK, "the last one brings the rest"
