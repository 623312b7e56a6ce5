"""A living run is upgraded: what an earlier coordinator and its agents had left when they were killed goes on under today's programs, and ends.

`left_by_0013.tar.xz` has the homes of a coordinator of the thirteenth schema, from before agents signed what they ask, and of its two agents: a run
that is completed, and one in the second of its four rounds, with a visit that agent-1 had begun.
"""

import re
import tarfile
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

import pytest

from fedcybgd.agent import credentials, reaching
from fedcybgd.agent.assignment_run import Tools, run_assignment
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.client import Client
from fedcybgd.agent.consent import patterns, source_for
from fedcybgd.agent.outbox import Outbox
from fedcybgd.agent.residuals import Residuals
from fedcybgd.agent.settings import Home
from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.db.base import open_engine
from fedcybgd.coordinator.verify import verify
from fedcybgd.shared.contract.agents import ClaimRequest
from tests.support.light import LightTrainer
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for

LEFT = Path(__file__).parents[1] / "migrations" / "left_by_0013.tar.xz"


@pytest.fixture
def left(tmp_path: Path) -> Path:
    with tarfile.open(LEFT) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def upgraded(left: Path) -> Iterator[LiveCoordinator]:
    engine = open_engine(f"sqlite:///{left / 'coordinator' / 'coordinator.db'}")
    assert migrate.current(engine) == "0013"
    engine.dispose()
    coordinator = LiveCoordinator(left / "coordinator")
    yield coordinator
    coordinator.stop()


class Upgraded:
    """An agent of today on the home of one of then: with its key, its settings, its rows and its cache."""

    def __init__(self, path: Path, url: str) -> None:
        self.home = Home(path)
        self.home.config.write_text(re.sub(r"http://127\.0\.0\.1:\d+", url, self.home.config.read_text()))
        self.config, self.policy = reaching.load(self.home)
        self.client: Client = reaching.client(self.home, self.config, self.policy, credentials.load(self.home))
        self.client.as_daemon()
        self.cache = ShardCache(self.home.cache, 1 << 30)

    def work(self) -> bool:
        """Whether there was some."""
        assignment = self.client.claim(ClaimRequest(runs=patterns(self.config)), 0.3)
        if assignment is None:
            return False
        data = source_for(self.home, self.config, assignment.run_name)
        outbox, residuals = Outbox(self.home.outbox, self.client.url), Residuals(self.home.residuals, self.client.url)
        run_assignment(Tools(self.client, self.cache, outbox, LightTrainer(), data, residuals, self.policy), assignment, lambda _: None)  # type: ignore[arg-type]
        return True


def test_a_run_in_the_middle_goes_on_and_ends(left: Path, upgraded: LiveCoordinator) -> None:
    agents = [Upgraded(left / f"agent-{i}", upgraded.url) for i in range(2)]
    assert [agent.client.me().name for agent in agents] == ["agent-0", "agent-1"], "their keys are good"
    before = upgraded.operator.get("/runs/upgraded")
    assert (before["state"], before["rounds_done"], before["rounds_total"]) == ("running", 1, 4)
    kept = sum(1 for _ in agents[1].home.cache.iterdir())

    wait_for(lambda: [agent.work() for agent in agents] and upgraded.operator.get("/runs/upgraded")["state"] != "running")
    after = upgraded.operator.get("/runs/upgraded")
    assert (after["state"], after["rounds_done"]) == ("completed", 4), after["reason"]
    assert agents[1].cache.bytes_fetched > 0
    assert kept > 0
    versions = {block["name"]: block["version"] for block in after["blocks"]}
    assert {versions[name] for name in ("layers.0", "layers.1")} == {2}
    assert all(isfinite(score["loss"]) for score in after["evaluations"])
    found = verify(upgraded.settings, "upgraded")
    assert (found.rounds, found.deltas, found.made_again) == (4, 4, 4 * len(("layer", "pooler", "head")))


def test_what_had_ended_is_there_as_it_was(upgraded: LiveCoordinator) -> None:
    run = upgraded.operator.get("/runs/before")
    assert (run["state"], run["rounds_done"]) == ("completed", 2)
    assert verify(upgraded.settings, "before").rounds == 2
