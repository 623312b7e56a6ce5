"""Two copies of one agent's home: noticed, said once, and no lease goes back and forth."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from fedcybgd.coordinator.db.models import Agent
from fedcybgd.shared.contract.words import DAEMON
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, last_visit, refused, settled, start_run

pytestmark = pytest.mark.database_decides


def claim(hand: Hand, run: str, daemon: str):  # type: ignore[no-untyped-def]
    return hand.http.post("/assignments/claim", params={"wait": 5}, json={"runs": [run]}, headers={DAEMON: daemon * 16}, timeout=60)


def told(live: LiveCoordinator, hand: Hand) -> int:
    return sum(hand.name in e["message"] for e in live.operator.get("/status")["last_errors"] if e["code"] == "agent_copied")


def test_of_two_copies_the_one_that_came_last_works_on(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assert claim(hand, run, "a").status_code == 200
    assert claim(hand, run, "b").json()["attempt"] == 2, "a restart: its own again"
    for _ in range(3):
        error = refused(claim(hand, run, "a"), 409, "agent_copied")
    assert "Stop one of them" in error.message
    assert last_visit(live, run)["attempt"] == 2
    assert told(live, hand) == 1
    assert claim(hand, run, "b").json()["attempt"] == 3
    hand.deliver(hand.take(run))  # a call that says nothing of a daemon is as before
    assert settled(live, run)["rounds_done"] == 1
    assert claim(hand, run, "c").status_code == 200, "the older one, started again"
    refused(claim(hand, run, "b"), 409, "agent_copied")
    assert told(live, hand) == 2


def test_a_copy_that_is_gone_leaves_the_work_to_the_one_that_is_there(live: LiveCoordinator, model: str, hand: Hand) -> None:
    """What is refused is no sign of life: else the agent would never be silent, and its work waited for for ever."""
    run = start_run(live, model, [hand])
    claim(hand, run, "a")
    claim(hand, run, "b")
    with live.database.transaction() as session:
        row = session.scalars(select(Agent).where(Agent.name == hand.name)).one()
        assert row.last_seen_at is not None
        row.last_seen_at = before = row.last_seen_at - timedelta(seconds=live.settings.silent_after_s / 2)
    refused(claim(hand, run, "a"), 409, "agent_copied")
    with live.database.transaction() as session:
        row = session.scalars(select(Agent).where(Agent.name == hand.name)).one()
        assert row.last_seen_at == before
        row.last_seen_at -= timedelta(seconds=live.settings.silent_after_s)
    found = wait_for(lambda: (answer := claim(hand, run, "a")).status_code == 200 and answer)
    assert found.json()["attempt"] == 3
    refused(claim(hand, run, "b"), 409, "agent_copied")


def test_restarts_are_no_copies(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    for attempt, daemon in enumerate("0123456789abcdef", 1):
        assert claim(hand, run, daemon).json()["attempt"] == attempt
    assert told(live, hand) == 0


@pytest.mark.parametrize("daemon", ["", "g", "A"])
def test_a_word_that_is_none_is_refused(hand: Hand, daemon: str) -> None:
    refused(claim(hand, "nothing", daemon), 422, "invalid_request")
