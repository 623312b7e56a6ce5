"""Nothing stands still in silence: a broken agent is passed over and shut away, and a run pauses only when nobody could go on."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.services.upkeep import quarantine, standstill
from tests.integration.test_readiness import hush, say
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, events, last_visit, refused, settled, start_run, sweep, wire


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is on its way to somebody for half a second instead of three."""
    monkeypatch.setattr(standstill, "PATIENCE", timedelta(seconds=0.5))


def agent(live: LiveCoordinator, hand: Hand) -> dict[str, str | None]:
    return next(a for a in live.operator.every("/agents") if a["name"] == hand.name)


def fail(hand: Hand, run: str, reason: str = "trainer_died") -> None:
    assert hand.give_back(hand.take(run), reason).status_code == 200


def paused(live: LiveCoordinator, run: str) -> str:
    view = wait_for(lambda: (v := live.operator.get(f"/runs/{run}"))["state"] == "paused" and v, limit=15)
    return str(view["reason"])


def told(live: LiveCoordinator, run: str) -> str:
    """What the event of a pause says."""
    return str(next(e["message"] for e in live.operator.get(f"/runs/{run}")["events"] if e["code"] == "run_paused"))


def shut_away(live: LiveCoordinator, run: str, broken: Hand, healthy: Hand) -> None:
    """Let it fail at two visits, which the other does."""
    for _ in range(2):
        fail(broken, run)
        fail(broken, run)
        healthy.deliver(healthy.take(run))
        settled(live, run)


@pytest.mark.database_decides
def test_one_broken_agent_never_pauses_a_run_and_is_shut_away(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed", "cycles": 4, "max_attempts": 2})
    fail(hand, run)
    assert last_visit(live, run)["meant_for"] == hand.name, "once is weather"
    fail(hand, run)
    assert last_visit(live, run)["meant_for"] is None
    assert hand.claim(run) is None, "it has failed twice, and another is there"
    other.deliver(other.take(run))
    settled(live, run)
    other.deliver(other.take(run))  # layers.1, its own
    settled(live, run)
    assert agent(live, hand)["quarantined_until"] is None
    fail(hand, run)
    fail(hand, run)
    assert agent(live, hand)["quarantined_until"] is not None
    assert "agent_quarantined" in events(live, run)
    for _ in range(5):  # and nothing of what is left waits for it
        assert last_visit(live, run)["meant_for"] in (None, other.name)
        assert hand.claim(run) is None
        other.deliver(other.take(run))
        settled(live, run)
    assert live.operator.get(f"/runs/{run}")["state"] in ("running", "completed")


def test_who_comes_out_of_quarantine_has_one_try_and_a_good_delta_clears_it(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand
) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come", "cycles": 5})
    shut_away(live, run, hand, other)
    until = agent(live, hand)["quarantined_until"]
    assert until is not None
    end = datetime.fromisoformat(until)
    first = end - utcnow()
    with live.database.transaction() as session:
        quarantine.end(session, end - timedelta(seconds=1))
    assert hand.claim(run) is None, "it is not over"
    with live.database.transaction() as session:
        quarantine.end(session, end + timedelta(seconds=1))
    fail(hand, run)
    again = agent(live, hand)["quarantined_until"]
    assert again is not None
    assert datetime.fromisoformat(again) - utcnow() > 1.5 * first, "one failure is enough, and it lasts longer"
    assert live.operator.post(f"/agents/{hand.name}/release")["quarantined_until"] is None
    hand.deliver(hand.take(run))
    settled(live, run)
    fail(hand, run)
    assert agent(live, hand)["quarantined_until"] is None
    with live.database.reading() as session:
        row = session.scalars(select(Agent).where(Agent.name == hand.name)).one()
        assert (row.strikes, row.quarantines) == (0, 0)


def test_who_takes_work_and_gives_it_back_again_and_again_is_shut_away(live: LiveCoordinator, model: str, hand: Hand) -> None:
    """Though there is nobody else: else it would go on for ever, and count for nothing."""
    run = start_run(live, model, [hand])
    for _ in range(4):
        fail(hand, run, "stopping")
    assert hand.claim(run) is None
    view = wait_for(lambda: (v := live.operator.get(f"/runs/{run}"))["reason"] and v, limit=15)
    assert view["state"] == "running", "it ends by itself"
    assert f"in quarantine ({hand.name} until" in view["reason"]
    assert f"fedcoord agents release {hand.name}" not in view["reason"]
    assert "run_waits" in events(live, run)
    live.operator.post(f"/agents/{hand.name}/release")
    hand.deliver(hand.take(run))
    assert settled(live, run)["reason"] is None


def test_a_stop_in_order_or_two_are_nobodys_failure(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], schedule={"max_attempts": 1})
    for _ in range(3):
        fail(hand, run, "stopping")
    hand.deliver(hand.take(run))
    assert settled(live, run)["rounds_done"] == 1


def test_where_everybody_fails_the_run_pauses_with_the_number(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come", "max_attempts": 3})
    for who in (hand, hand, other):
        fail(who, run)
    assert live.operator.get(f"/runs/{run}")["state"] == "running", "one of them has failed once only"
    fail(other, run)
    reason = paused(live, run)
    assert "4 attempts failed" in reason
    assert told(live, run) == f"run {run} paused: {reason}; mend it, then resume"
    live.operator.post(f"/runs/{run}/resume")
    hand.take(run)


def test_without_another_who_failed_twice_tries_again(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come"})
    fail(hand, run)
    fail(hand, run)
    assert hand.claim(run) is None
    hush(live, other)
    assert hand.take(run).attempt == 3


@pytest.mark.database_decides
def test_a_dead_and_an_excluded_participant_are_nobody_left_to_ask(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    hush(live, hand)
    fail(other, run, "data_invalid")
    reason = paused(live, run)
    assert f"1 silent ({hand.name} since " in reason
    assert f"1 excluded: data_invalid ({other.name})" in reason
    assert "start an agent" in reason
    assert live.operator.get(f"/runs/{run}")["waits_for_agents"] is True
    live.operator.post(f"/agents/{hand.name}/revoke")
    sweep(live)
    assert live.operator.get(f"/runs/{run}")["state"] == "paused"
    say(other, live.operator.get(f"/runs/{run}")["id"], True)
    assert other.take(run).block == "layers.0"


def test_a_run_goes_on_by_itself_when_a_silent_agent_is_heard_of(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    hush(live, hand)
    reason = paused(live, run)
    assert f"1 silent ({hand.name} since " in reason
    assert told(live, run) == f"run {run} paused: {reason}; then it goes on by itself", "it says what is needed; and nobody resumes it"
    hand.deliver(hand.take(run))
    view = settled(live, run)
    assert (view["state"], view["reason"], view["rounds_done"]) == ("running", None, 1)
    assert events(live, run).count("run_resumed") == 1


def test_the_last_participant_revoked_is_a_pause_that_says_so(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    hand.take(run)
    for who in (other, hand):  # one holds it, the other is only meant to
        live.operator.post(f"/agents/{who.name}/revoke")
    reason = paused(live, run)
    assert "nobody may take it; enrol another agent" in reason


def test_a_wave_does_not_wait_for_who_is_excluded_or_shut_away(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed", "wave": 2, "cycles": 3, "blocks": ["layers"]})
    fail(hand, run, "data_invalid")
    other.deliver(other.take(run))
    other.deliver(other.take(run))  # the other's part, at once
    assert settled(live, run)["rounds_done"] == 1
    other.deliver(other.take(run))
    other.deliver(other.take(run))
    assert settled(live, run)["rounds_done"] == 2


def test_release_is_the_operators(live: LiveCoordinator, hand: Hand) -> None:
    refused(hand.http.post(f"/agents/{hand.name}/release"), 401, "unauthorized")
    refused(wire(live).post(f"/agents/{hand.name}/release"), 401, "unauthorized")
    refused(wire(live, live.operator_key).post("/agents/nobody/release"), 404, "not_found")
