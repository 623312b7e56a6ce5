"""What comes of a visit that is given back goes by who can mend it."""

import pytest

from tests.integration.conftest import Hand
from tests.support.live import LiveCoordinator
from tests.support.visits import events, last_visit, start_run


def test_what_no_agent_can_mend_pauses_the_run_at_once_with_the_fact(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other])
    assignment = hand.claim(run) or other.take(run)
    holder = hand if last_visit(live, run)["agent"] == hand.name else other
    fact = "AssemblyError at shared/layers.py:20, phase loading; the agent's own log says more"
    assert holder.give_back(assignment, "model_mismatch", fact).status_code == 200
    view = live.operator.get(f"/runs/{run}")
    assert view["state"] == "paused"
    assert "model_mismatch: AssemblyError at shared/layers.py:20" in view["reason"]
    assert last_visit(live, run)["attempt"] == 1, "nobody was asked again"
    assert {"model_mismatch", "run_paused"} <= set(events(live, run))


@pytest.mark.parametrize("reason", ["bug", "stalled", "disk_unwritable"])
def test_what_another_agent_or_attempt_may_manage_does_not(live: LiveCoordinator, model: str, hand: Hand, reason: str) -> None:
    run = start_run(live, model, [hand])
    assert hand.give_back(hand.take(run), reason, "x").status_code == 200
    assert live.operator.get(f"/runs/{run}")["state"] == "running"
    assert hand.take(run).attempt == 2
