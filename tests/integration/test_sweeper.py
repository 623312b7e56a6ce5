"""The sweeper: notices who is silent, and clears away what nobody will finish."""

import os
import time
from datetime import timedelta
from typing import Any

import pytest

from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.sweeper import UPLOAD_KEPT_S
from fedcybgd.shared.contract.words import DAEMON
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, sweep

pytestmark = pytest.mark.database_decides


def view(live: LiveCoordinator, hand: Hand) -> Any:
    return next(a for a in live.operator.every("/agents") if a["name"] == hand.name)


def go_unseen(live: LiveCoordinator, hand: Hand, seconds: float) -> None:
    """As if the agent had last been seen that long ago."""
    with live.database.transaction() as session:
        row = session.get_one(Agent, view(live, hand)["id"])
        assert row.last_seen_at is not None
        row.last_seen_at -= timedelta(seconds=seconds)


def test_an_agent_that_is_not_seen_is_silent_until_it_is_seen_again(live: LiveCoordinator) -> None:
    hand = Hand(live, seen=False)
    assert view(live, hand)["state"] == "enrolled"
    hand.me()
    assert view(live, hand)["state"] == "active"
    go_unseen(live, hand, live.settings.silent_after_s + 1)
    wait_for(lambda: view(live, hand)["state"] == "silent", limit=5)
    errors = live.operator.get("/status")["last_errors"]
    assert [e["code"] for e in errors if hand.name in e["message"]] == ["agent_silent"]
    hand.claim("nothing")
    after = view(live, hand)
    assert after["state"] == "active"
    sweep(live)
    assert view(live, hand)["state"] == "active"


def test_an_owner_who_looks_does_not_make_a_daemon_that_is_gone_seem_there(live: LiveCoordinator) -> None:
    """`fedagent status` beside a daemon that was killed: else a run waits for it again, as often as somebody looks."""
    hand, daemon = Hand(live), {DAEMON: "a" * 16}
    hand.http.post("/assignments/claim", params={"wait": 0}, json={"runs": []}, headers=daemon)
    go_unseen(live, hand, live.settings.silent_after_s + 1)
    wait_for(lambda: view(live, hand)["state"] == "silent", limit=5)
    before = view(live, hand)["last_seen_at"]
    assert hand.me().state == "silent"
    assert (view(live, hand)["state"], view(live, hand)["last_seen_at"]) == ("silent", before)
    hand.http.get("/agents/me", headers=daemon)
    assert view(live, hand)["state"] == "active"


def test_an_agent_seen_lately_is_not_silent(live: LiveCoordinator) -> None:
    hand, never = Hand(live), Hand(live, seen=False)
    hand.me()
    go_unseen(live, hand, live.settings.silent_after_s - 30)
    sweep(live)
    assert view(live, hand)["state"] == "active"
    assert view(live, never)["state"] == "enrolled"


def test_a_revoked_agent_stays_revoked(live: LiveCoordinator) -> None:
    hand = Hand(live)
    hand.me()
    live.operator.post(f"/agents/{hand.name}/revoke")
    go_unseen(live, hand, live.settings.silent_after_s + 1)
    sweep(live)
    assert view(live, hand)["state"] == "revoked"


def test_parts_of_deltas_that_nobody_goes_on_with_are_cleared_away(live: LiveCoordinator) -> None:
    live.settings.uploads.mkdir(parents=True, exist_ok=True)  # it is made with the first upload
    old, young = (live.settings.uploads / f"asg_{n}-agt_{n}-{n:064x}.part" for n in (1, 2))
    for path in (old, young):
        path.write_bytes(b"x")
    then = time.time() - UPLOAD_KEPT_S - 60
    os.utime(old, (then, then))
    live.app.state.uploads.sweep(UPLOAD_KEPT_S)
    assert not old.exists()
    assert young.exists()
    young.unlink()
