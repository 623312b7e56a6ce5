"""What an agent says of itself cannot blind the operator, nor speak to the operator's terminal."""

import pytest
from typer.testing import CliRunner

from fedcybgd.coordinator import cli
from fedcybgd.shared.contract.versions import SPOKEN, VERSION
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, start_run, wire

pytestmark = pytest.mark.database_decides

HOSTILE = "heap [/red] gone [link=https://evil.example]log in[/link] \x1b]52;c;ZXZpbA==\x07\x1b[2J \u202eslia\x9b1m [/]"


def fedcoord(live: LiveCoordinator, *words: str) -> str:
    environment = {"FEDCOORD_URL": live.url, "FEDCOORD_OPERATOR_KEY": live.operator_key, "COLUMNS": "80"}
    result = CliRunner().invoke(cli.app, list(words), env=environment)
    assert result.exit_code == 0, result.output
    assert not [c for c in result.output if c != "\n" and not c.isprintable()]
    return str(result.output)


@pytest.fixture
def mallory(live: LiveCoordinator) -> Hand:
    """An agent whose device is called what no device is called."""
    hand = Hand.__new__(Hand)
    hand.name, hand.http = fresh("mallory"), wire(live)
    body = {"token": live.operator.post("/enrolment-tokens", {})["token"], "name": hand.name}
    answer = hand.http.post("/agents", json={**body, "device": {"kind": "[/]\x1b[2J", "name": HOSTILE}, "version": "[/]"})
    assert answer.status_code == 201, answer.text
    hand.http.headers.update({"Authorization": f"Bearer {answer.json()['key']}", VERSION: str(SPOKEN)})
    hand.http.get("/agents/me")  # who was never seen takes no part in a run
    return hand


def test_status_and_lists_survive_hostile_text(live: LiveCoordinator, model: str, mallory: Hand) -> None:
    run = start_run(live, model, [mallory])
    assert mallory.give_back(mallory.take(run), "trainer_died", f"{HOSTILE}\nrun_completed: run {run} completed").status_code == 200
    assert "\n" not in next(e["message"] for e in live.operator.every(f"/events?run={run}") if e["code"] == "trainer_died")
    shown = fedcoord(live, "status")
    assert "heap [/red] gone [link=https://evil.example]log in[/link]" in shown
    assert "evil" not in shown.replace("evil.example", "")
    agents = fedcoord(live, "agents", "list")
    assert mallory.name in agents.replace("\n", "").replace("│", "").replace(" ", "")
    fedcoord(live, "run", "status", run)
    live.operator.post(f"/runs/{run}/cancel")


@pytest.mark.parametrize("progress", [{"phase": "training", "steps": 5, "loss": None}, {"phase": "training", "steps": 5, "step": 9}])
def test_a_visit_that_says_little_can_be_watched(live: LiveCoordinator, model: str, hand: Hand, progress: dict[str, object]) -> None:
    run = start_run(live, model, [hand])
    assert hand.renew(hand.take(run), **progress).status_code == 200
    assert "of 5" in fedcoord(live, "run", "status", run)
    live.operator.post(f"/runs/{run}/cancel")
    fedcoord(live, "run", "list")
