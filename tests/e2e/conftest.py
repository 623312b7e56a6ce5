"""One coordinator and two agents as real processes, for the tests of this directory."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedcybgd import Agent, Coordinator
from tests.support.models import WORDS
from tests.support.processes import ENVIRONMENT, start_agent

STEPS = 600
"""Long enough to be killed in the middle: what a visit has done is seen half a second after it began."""


def write_rows(path: Path, seed: int, count: int = 64) -> Path:
    """Rows with a rule to learn: the label is whether the first word is in the first half of the list."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            words = [draw.choice(WORDS) for _ in range(8)]
            file.write(json.dumps({"text": " ".join(words), "label": int(WORDS.index(words[0]) >= len(WORDS) // 2)}) + "\n")
    return path


def spec(name: str, steps: int = 20, **schedule: Any) -> dict[str, Any]:
    """A run over both layers with the head along: four rounds in two cycles. As an operator writes it, without the defaults."""
    return {
        "name": name, "model": "tiny", "task": {"kind": "text-classification", "labels": 2, "max_length": 16},
        "schedule": {"cycles": 2, "blocks": ["layers"], "always": ["pooler", "head"]} | schedule,
        "train": {"steps": steps, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32"},
        "lease_s": 20,
    }  # fmt: skip


class Federation:
    def __init__(self, folder: Path, bert: Path, **settings: str | float | Path) -> None:
        self.folder, self.bert = folder, bert
        self.coordinator = Coordinator.local(folder / "coordinator", environment=ENVIRONMENT, **settings)
        self.operator = self.coordinator.client.connection
        self.operator.post("/models", {"name": "tiny", "source": str(bert)})
        self.partitions = [write_rows(folder / f"rows-{i}.jsonl", i) for i in range(2)]
        self.agents = [start_agent(folder / f"agent-{i}", f"agent-{i}", self.coordinator, path) for i, path in enumerate(self.partitions)]
        model = self.operator.wait(lambda: self.operator.get("/models/tiny"), lambda m: m["state"] != "adding", limit=90)
        assert model["state"] == "ready", model["reason"]
        self.all_there()

    def all_there(self) -> None:
        """Wait for its agents: who is silent takes no part in a run from its start, and then another agent trains what was its."""
        mine = {agent.name for agent in self.agents}
        self.operator.wait(
            lambda: self.operator.every("/agents"),
            lambda agents: all(a["state"] == "active" for a in agents if a["name"] in mine),
            limit=60,
        )

    def create(self, values: dict[str, Any]) -> str:
        """A prepared run; its id."""
        run = self.operator.post("/runs", values)
        self.operator.wait(lambda: self.operator.get(f"/runs/{run['id']}"), lambda r: r["prepared"], limit=60)
        return str(run["id"])

    def start(self, values: dict[str, Any]) -> str:
        run_id = self.create(values)
        self.operator.post(f"/runs/{run_id}/start")
        return run_id

    def finished(self, run_id: str, limit: float = 120) -> dict[str, Any]:
        view = self.operator.wait(lambda: self.operator.get(f"/runs/{run_id}"), lambda r: r["state"] != "running", limit=limit)
        assert view["state"] == "completed", view["reason"]
        result: dict[str, Any] = view
        return result

    def digests(self, run_id: str) -> dict[str, str]:
        return {b["name"]: b["digest"] for b in self.finished(run_id)["blocks"]}

    def training(self, run_id: str) -> dict[str, Any] | None:
        """The assignment that is being trained right now, once steps are reported."""
        for assignment in self.operator.get(f"/runs/{run_id}")["current"]:
            if assignment["state"] == "leased" and (assignment["progress"] or {}).get("step"):
                return dict(assignment)
        return None

    def agent_of(self, assignment: dict[str, Any]) -> Agent:
        return next(a for a in self.agents if a.name == assignment["agent"])

    def stop(self) -> None:
        for agent in self.agents:
            if agent.running:
                agent.kill()
        if self.coordinator.running:
            self.coordinator.kill()


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Iterator[Federation]:
    system = Federation(tmp_path_factory.mktemp("federation"), bert)
    yield system
    system.stop()


@pytest.fixture(scope="session")
def undisturbed(federation: Federation) -> dict[str, str]:
    """The digests that a run of long visits ends with, whatever happens to it."""
    return federation.digests(federation.start(spec("undisturbed", STEPS, cycles=1)))
