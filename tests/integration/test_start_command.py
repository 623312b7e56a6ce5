"""`fedcoord run create --start`, `run start` and `run status` say who takes part, and who does not yet."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from fedcybgd.coordinator import cli
from fedcybgd.shared.contract.errors import FedError
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, run_file


def fedcoord(live: LiveCoordinator, *words: str) -> Result:
    environment = {"FEDCOORD_URL": live.url, "FEDCOORD_OPERATOR_KEY": live.operator_key, "COLUMNS": "80"}
    return CliRunner().invoke(cli.app, list(words), env=environment)


def written(folder: Path, spec: dict[str, Any]) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(spec))
    return str(path)


def test_a_start_says_who_takes_part(live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path) -> None:
    absent, unfit = Hand(live, seen=False), Hand(live)
    spec = run_file(model, [hand, absent, unfit])
    assert fedcoord(live, "run", "create", written(tmp_path, spec)).exit_code == 0
    run_id = live.operator.get(f"/runs/{spec['name']}")["id"]
    for agent, said in ((hand, {"fits": True, "rows": 1000}), (unfit, {"fits": False, "reason": "data_missing"})):
        assert agent.http.put("/agents/me/readiness", json={"runs": [{"run_id": run_id, **said}]}).status_code == 204
    started = fedcoord(live, "run", "start", spec["name"])
    assert started.exit_code == 0, started.output
    lines = started.output.splitlines()
    assert lines[0] == f"run {spec['name']} is running; 1 agent takes part"
    assert f"  {hand.name}: ready, 1,000 rows or more" in lines
    assert f"  {absent.name}: never seen: `fedagent run` was not started there yet" in lines
    assert f"  {unfit.name}: no data that fit (data_missing); `fedagent check` on its machine says more" in lines
    status = fedcoord(live, "run", "status", spec["name"]).output
    assert f"  {absent.name}: never seen" in status
    assert f"  {hand.name}: ready" not in status
    listed = fedcoord(live, "run", "list").output
    assert run_id in listed
    live.operator.post(f"/runs/{run_id}/cancel")


@pytest.mark.parametrize("agents", ["nobody-there", "not-enrolled"])
def test_a_start_that_fails_leaves_no_draft_in_the_way(live: LiveCoordinator, model: str, agents: str, tmp_path: Path) -> None:
    absent = Hand(live, seen=False)
    spec = run_file(model, "all") | {"agents": [absent.name if agents == "nobody-there" else fresh("nobody")]}
    failed = fedcoord(live, "run", "create", written(tmp_path, spec), "--start")
    assert isinstance(failed.exception, FedError), failed.output
    assert f"run {spec['name']} was not started, and is cancelled: its name is free again" in failed.exception.message
    assert live.operator.get(f"/runs/{spec['name']}")["state"] == "cancelled"
    again = fedcoord(live, "run", "create", written(tmp_path, {**spec, "agents": [absent.name]}), "--start", "--anyway")
    assert again.exit_code == 0, again.output
    assert live.operator.get(f"/runs/{spec['name']}")["participants"] == [absent.name]
    live.operator.post(f"/runs/{spec['name']}/cancel")


def test_a_start_that_is_refused_names_who_is_missing(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    absent = Hand(live, seen=False)
    spec = run_file(model, [absent])
    fedcoord(live, "run", "create", written(tmp_path, spec))
    refused = fedcoord(live, "run", "start", spec["name"])
    assert isinstance(refused.exception, FedError)
    assert f"{absent.name} was never seen" in refused.exception.message
    assert "[nobody_ready]" in str(refused.exception)
    live.operator.post(f"/runs/{spec['name']}/cancel")


@pytest.mark.parametrize("command", [("run", "list"), ("agents", "list")])
def test_scripts_get_everything(live: LiveCoordinator, hand: Hand, command: tuple[str, ...]) -> None:
    import json

    assert isinstance(json.loads(fedcoord(live, *command, "--json").output), list)
