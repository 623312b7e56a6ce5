"""A home that was copied: two processes with one key leave the work to each other, and people are told."""

import threading
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent import aside, worker
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import LeaseGone, TakenAgain
from fedcybgd.agent.settings import Home
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.training import TrainMetrics
from tests.support.light import LightAgent, LightTrainer
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, events, start_run


class Overtaken(LightTrainer):
    """While it trains, another process with the same key asks for work."""

    def __init__(self, other: Client, run: str) -> None:
        super().__init__()
        self.other, self.run = other, run

    def train(self, request: Any, report: Any, lost: Any) -> TrainMetrics:
        assert self.other.claim(ClaimRequest(runs=[self.run]), 0.3) is not None
        assert isinstance(lost, threading.Event)
        assert lost.wait(20)
        raise LeaseGone("the lease is gone")


def test_whoever_is_overtaken_under_its_own_key_knows_it(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    agent = LightAgent(live, tmp_path)
    run = start_run(live, model, [agent])  # type: ignore[list-item]
    agent.tools = worker.Tools(
        agent.client, agent.cache, agent.tools.outbox, Overtaken(agent.client, run), agent.tools.data, agent.tools.residuals
    )  # type: ignore[arg-type]
    assignment = agent.claim(run)
    assert assignment is not None
    with pytest.raises(TakenAgain):
        agent.visit(assignment)


def test_the_operator_is_told_and_not_each_time(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    told = []
    for _ in range(9):
        hand.take(run)
        told.append(events(live, run).count("taken_again"))
    assert told == [0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_each_leaves_the_work_to_the_other_for_longer_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    home.config.write_text('coordinator = "http://127.0.0.1:1"\n[data]\npath = "rows.jsonl"\nruns = ["*"]\n')
    agent = worker.Worker(home, home.load_config(), Client("http://127.0.0.1:1", "fca_x"))
    pauses: list[float] = []
    monkeypatch.setattr(agent._stop, "pause", pauses.append)
    monkeypatch.setattr(aside.random, "uniform", lambda *_: 1.0)
    for _ in range(10):
        agent._stand_aside(TakenAgain("attempt 1 was overtaken by attempt 2"))
    assert pauses == [0, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert "another process works with this agent's key" in home.status.read_text()
