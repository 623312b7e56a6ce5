"""Agents with images train a vision transformer over HTTP, by every method, and it learns."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from fedcybgd import Client
from fedcybgd.agent.messages import DataSource, TrainRequest
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.db.models import Run
from fedcybgd.coordinator.services.emulators.pace import row_tokens
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.training import TrainMetrics
from tests.support.light import LightAgent, LightTrainer
from tests.support.live import LiveCoordinator
from tests.support.models import tiny_vit
from tests.support.pictures import parquet, rows
from tests.support.visits import fresh, settled


class RealTrainer(LightTrainer):
    """Trains as a training process does, in this one."""

    def __init__(self) -> None:
        super().__init__()
        self._visitor = Visitor("cpu")

    def train(self, request: TrainRequest, report: Callable[[Progress], None], lost: object) -> TrainMetrics:
        return self._visitor.visit(request, report, lambda: False)


METHODS: dict[str, dict[str, Any]] = {
    "cycle": {"schedule": {"blocks": ["layers"], "always": ["head"]}},
    "wave": {"schedule": {"blocks": ["embeddings", "layers"], "always": ["head"], "wave": 2}},
    "whole": {"method": "whole", "whole": {"weights": "equal"}, "schedule": {"cycles": 2, "always": ["head"]}},
    "adapters": {"method": "adapters", "adapters": {"rank": 4}, "schedule": {"cycles": 2, "always": ["head"]}},
}


@pytest.fixture(scope="module")
def vit(live: LiveCoordinator, tmp_path_factory: pytest.TempPathFactory) -> str:
    live.add_model("tiny-vit", tiny_vit(tmp_path_factory.mktemp("vit")))
    return "tiny-vit"


@pytest.mark.parametrize("method", METHODS)
def test_a_vision_transformer_learns(method: str, live: LiveCoordinator, vit: str, tmp_path: Path) -> None:
    agents = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        agent = LightAgent(live, tmp_path / str(number))
        data = DataSource(path=str(parquet(tmp_path / f"{number}.parquet", rows(40))), tell_labels=True)
        agent.tools = replace(agent.tools, trainer=RealTrainer(), data=data)  # type: ignore[arg-type]
        agents.append(agent)
    held_out = parquet(tmp_path / "held-out.parquet", rows(20))
    spec = {
        "name": fresh("images"), "model": vit, "agents": [a.name for a in agents],
        "task": {"kind": "image-classification", "labels": ["top", "bottom"]},
        "train": {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "always_learning_rate": 1e-2}, **METHODS[method],
        "evaluate": {"held_out": held_out.name, "digest": Client(live.url, live.operator_key).runs.upload_held_out(held_out), "every": "end"},
    }  # fmt: skip
    name = str(live.create_run(spec, start=True)["name"])
    with live.database.reading() as session:
        [run] = session.scalars(select(Run).where(Run.name == name))
        assert row_tokens(session, run) == 5, "four patches and the class token"
    while live.state_of(name) == "running":
        for agent in agents:
            if (assignment := agent.claim(name)) is not None:
                agent.visit(assignment)
    view = settled(live, name)
    assert view["state"] == "completed", view["reason"]
    assert view["evaluations"][-1]["accuracy"] >= 0.9, view["evaluations"]
    assert view["evaluations"][-1]["majority"] == 0.5
