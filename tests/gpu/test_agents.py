"""A coordinator and two agents as real processes, which train on one card within their walls."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedcybgd import Agent, Coordinator
from fedcybgd.agent.device import find_device
from tests.e2e.conftest import write_rows
from tests.support.models import tiny_bert
from tests.support.processes import ENVIRONMENT, trainer, wait_for

CARD = {"device": {"kind": "cuda", "gpu": 0, "threads": 1}}


def spec(name: str, steps: int = 20, **more: Any) -> dict[str, Any]:
    schedule = {"cycles": 2, "blocks": ["layers"], "always": ["pooler", "head"], **more.pop("schedule", {})}
    train = {"steps": steps, "batch_size": 8, "learning_rate": 1e-3, **more.pop("train", {})}
    task = {"kind": "text-classification", "labels": 2, "max_length": 16}
    return {"name": name, "model": "tiny", "task": task, "schedule": schedule, "train": train, "lease_s": 20, **more}


class Cards:
    def __init__(self, folder: Path) -> None:
        self.coordinator = Coordinator.local(folder / "coordinator", environment=ENVIRONMENT)
        self.client = self.coordinator.client
        self.client.models.add(tiny_bert(folder / "bert", layers=4), "tiny", wait_s=120)
        self.agents = [
            Agent.local(
                self.coordinator.url, self.coordinator.token(), f"card-{i}", data=write_rows(folder / f"rows-{i}.jsonl", i), runs=["*"],
                home=folder / f"card-{i}", settings=CARD, environment=ENVIRONMENT,
            )
            for i in range(2)
        ]  # fmt: skip

    def done(self, values: dict[str, Any]) -> Any:
        run = self.client.runs.create(values)
        self.client.runs.start(run.id)
        return self.client.runs.wait(run.id, lambda r: r.state != "running", every_s=0.5)

    def stop(self) -> None:
        for agent in self.agents:
            if agent.running:
                agent.kill()
        self.coordinator.kill()


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cards]:
    found = Cards(tmp_path_factory.mktemp("cards"))
    yield found
    found.stop()


@pytest.mark.parametrize(
    "more",
    [
        {"train": {"precision": "float32"}}, {}, {"compression": {"policy": "int4"}},
        {"schedule": {"wave": 2}, "compression": {"policy": "int8"}},
    ],
    ids=["float32", "auto", "int4", "wave"],
)  # fmt: skip
def test_a_run_is_done_on_the_card(cards: Cards, more: dict[str, Any], request: pytest.FixtureRequest) -> None:
    run = cards.done(spec(f"card-{request.node.callspec.id}", **more))
    assert run.state == "completed", run.reason
    visits = [v for v in cards.client.runs.assignments(run.id) if v.metrics is not None]
    assert {v.agent for v in visits} == {"card-0", "card-1"}
    # What a CPU reports is beyond its process and mostly a few megabytes; what torch allocates on a card has its products' workspace in it.
    assert all(v.metrics is not None and v.metrics.peak_memory_bytes > (1 << 20) for v in visits)


def test_the_walls_stand_around_what_trains_on_a_card(cards: Cards) -> None:
    status = json.loads((cards.agents[0].home / "status.json").read_text())
    assert status["walls"].startswith("no network (")
    training = trainer(cards.agents[0])
    assert training is not None
    assert any("nvidia" in found.path or "libcuda" in found.path for found in training.memory_maps()), "it does train on the card"
    assert {c.family.name for c in training.net_connections()} <= {"AF_UNIX"}


def test_check_tries_the_card_in_the_walls_and_says_so(cards: Cards) -> None:
    words = [sys.executable, "-m", "fedcybgd.agent.cli", "check", "--home", str(cards.agents[0].home)]
    checked = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    said = " ".join(checked.stdout.split())
    assert "training on cuda, bfloat16" in said, checked.stdout + checked.stderr
    assert f"cuda ({find_device().name})" in said


def test_two_runs_with_the_same_seeds_end_with_the_same_bits(cards: Cards) -> None:
    ends = [cards.done(spec(f"again-{i}", schedule={"cycles": 1})) for i in range(2)]
    assert [end.state for end in ends] == ["completed"] * 2
    one, other = ({b.name: b.digest for b in end.blocks} for end in ends)
    assert one == other


def test_a_killed_training_process_costs_an_attempt_and_changes_nothing(cards: Cards) -> None:
    whole = cards.done(spec("whole", steps=400, schedule={"cycles": 1, "blocks": ["layers.0"]}))
    run = cards.client.runs.create(spec("killed", steps=400, schedule={"cycles": 1, "blocks": ["layers.0"]}))
    cards.client.runs.start(run.id)

    def busy() -> Any:
        current = cards.client.runs.get(run.id).current
        return next((a.agent for a in current if a.state == "leased" and a.progress is not None and a.progress.step), None)

    name = wait_for(busy)
    killed = trainer(next(a for a in cards.agents if a.name == name))
    assert killed is not None
    killed.kill()
    end = cards.client.runs.wait(run.id, lambda r: r.state != "running", every_s=0.5)
    assert end.state == "completed", end.reason
    assert max(v.attempt for v in cards.client.runs.assignments(run.id)) == 2
    assert {b.name: b.digest for b in end.blocks} == {b.name: b.digest for b in whole.blocks}
