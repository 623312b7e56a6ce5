"""What comes of a visit that is given back goes by who can mend it."""

import pytest

from tests.integration.conftest import Hand
from tests.support.live import LiveCoordinator
from tests.support.visits import events, settled, start_run

FACT = "AssemblyError at shared/layers.py:20, phase loading; the agent's own log says more"


def test_what_no_agent_can_mend_pauses_the_run_when_two_say_it(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    """One alone is believed of itself: it is passed over at the visit, and after each resume as well."""
    third = Hand(live)
    run = start_run(live, model, [hand, other, third], schedule={"agents": "first_come", "max_attempts": 9})
    for _ in range(2):
        assert hand.give_back(hand.take(run), "model_mismatch", FACT).status_code == 200
        assert live.operator.get(f"/runs/{run}")["state"] == "running"
        assert hand.claim(run) is None, "it would be the same again"
        live.operator.post(f"/runs/{run}/pause")
        live.operator.post(f"/runs/{run}/resume")
    hand.give_back(hand.take(run), "model_mismatch", FACT)
    other.give_back(other.take(run), "bug", "another matter")
    assert live.operator.get(f"/runs/{run}")["state"] == "running"
    other.give_back(other.take(run), "model_mismatch", FACT)
    view = live.operator.get(f"/runs/{run}")
    assert view["state"] == "paused"
    assert "model_mismatch: AssemblyError at shared/layers.py:20" in view["reason"]
    assert f"so says {' and '.join(sorted([hand.name, other.name]))}, and no agent can mend it" in view["reason"]
    assert {"model_mismatch", "run_paused"} <= set(events(live, run))
    live.operator.post(f"/runs/{run}/resume")
    third.deliver(third.take(run))
    assert settled(live, run)["rounds_done"] == 1
    hand.give_back(hand.take(run), "model_mismatch", FACT)
    assert live.operator.get(f"/runs/{run}")["state"] == "running", "what was said of a visit before counts no more"


def test_what_no_agent_can_mend_pauses_a_run_that_has_nobody_else(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    hand.give_back(hand.take(run), "model_mismatch", FACT)
    view = live.operator.get(f"/runs/{run}")
    assert view["state"] == "paused"
    assert f"model_mismatch: {FACT}; so says {hand.name}" in view["reason"]


@pytest.mark.parametrize("reason", ["bug", "stalled", "disk_unwritable"])
def test_what_another_agent_or_attempt_may_manage_does_not(live: LiveCoordinator, model: str, hand: Hand, reason: str) -> None:
    run = start_run(live, model, [hand])
    assert hand.give_back(hand.take(run), reason, "x").status_code == 200
    assert live.operator.get(f"/runs/{run}")["state"] == "running"
    assert hand.take(run).attempt == 2
