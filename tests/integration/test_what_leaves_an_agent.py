"""What an agent says of a failed visit holds nothing of its data."""

from pathlib import Path

import pytest

from fedcybgd.agent import worker
from fedcybgd.agent.settings import Config, Home
from fedcybgd.shared.contract.agents import ClaimRequest
from tests.support.live import LiveCoordinator

ROW = "column 'text' must be text that is not empty, not 4929123456789012"


@pytest.mark.parametrize(("reason", "shown"), [("data_invalid", False), ("other", False), ("disk_full", True)])
def test_a_message_that_may_quote_a_row_stays_with_the_agent(
    live: LiveCoordinator, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, shown: bool
) -> None:
    monkeypatch.setattr(worker, "FAILURE_PAUSE_S", 0.0)
    name = f"quotes-{reason}"
    live.add_model(name, bert)
    client = live.enrol(name)
    spec = {"name": name, "model": name, "agents": [name], "task": {"kind": "text-classification", "labels": 3, "max_length": 32}}
    live.create_run({**spec, "schedule": {"blocks": ["layers"], "always": ["head"]}}, start=True)
    assignment = client.claim(ClaimRequest(runs=["*"]), wait=5)
    assert assignment is not None
    home = Home(tmp_path)
    config = Config.model_validate({"coordinator": live.url, "data": {"path": "rows.jsonl"}})

    worker.Worker(home, config, client)._failed(assignment, reason, ROW)

    agent = next(a for a in live.operator.every("/agents") if a["name"] == name)
    assert agent["last_error"].startswith(f"{reason}: ")
    assert ("4929123456789012" in agent["last_error"]) is shown
    assert ("4929123456789012" in str(live.operator.get(f"/runs/{name}"))) is shown
    assert ROW in home.status.read_text()
