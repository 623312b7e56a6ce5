"""A coordinator that slept, was stopped, lost its database or had its clock set: nobody loses a lease, a turn or a name by it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from fedcybgd.coordinator.absence import Absence, read_clocks
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Agent, Assignment, Event, Replica, StoredUpload, Webhook
from fedcybgd.coordinator.domain.absence import Moment
from fedcybgd.coordinator.domain.agent import needs_seen
from fedcybgd.coordinator.home import home_id
from fedcybgd.coordinator.services.operate import webhooks
from fedcybgd.coordinator.services.records import arrivals, replicas
from fedcybgd.coordinator.services.records.events import OFTEN, record_at_most
from fedcybgd.coordinator.services.upkeep import leases
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, events, last_visit, settled, start_run, wire

pytestmark = pytest.mark.database_decides

HOUR = timedelta(hours=1)


def sleep_an_hour(live: LiveCoordinator) -> None:
    """All that the coordinator noted is an hour older than it was, and so is its last commit."""
    absence: Absence = live.app.state.absence
    with absence._lock:
        absence.times += 1  # a sweep that looked before and waits for its turn to write would find old times under a new clock
        with live.database.transaction() as session:
            for assignment in session.query(Assignment):
                assignment.waiting_since -= HOUR
                if assignment.lease_expires_at is not None:
                    assignment.lease_expires_at -= HOUR
            for agent in session.query(Agent).where(Agent.last_seen_at.is_not(None)):
                agent.last_seen_at -= HOUR
        absence._last = Moment(absence._last.wall - HOUR, absence._last.elapsed - HOUR.total_seconds())


def row(live: LiveCoordinator, assignment_id: str) -> Assignment:
    with live.database.reading() as session:
        return session.get_one(Assignment, assignment_id)


def told(live: LiveCoordinator) -> int:
    return [e["code"] for e in live.operator.get("/status")["last_errors"]].count("coordinator_absent")


@pytest.mark.parametrize("first", ["the sweeper", "a claim", "a renewal"])
def test_no_lease_ends_because_the_coordinator_slept(coordinators: Callable[..., LiveCoordinator], bert: Any, first: str) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    hand, other = Hand(live), Hand(live)
    run = start_run(live, "bert", [hand, other], schedule={"agents": "fixed"}, lease_s=30)
    held = hand.take(run)
    sleep_an_hour(live)
    if first == "a claim":
        assert other.claim(run) is None
    elif first == "a renewal":
        assert hand.renew(held).status_code == 200
    wait_for(lambda: told(live) == 1, limit=10)
    expires = row(live, held.assignment_id).lease_expires_at
    assert expires is not None
    assert timedelta(seconds=20) < expires - read_clocks().wall <= timedelta(seconds=30)
    assert hand.renew(held).json()["go_on"] is True
    assert (last_visit(live, run)["attempt"], last_visit(live, run)["state"]) == (1, "leased")
    assert "lease_lapsed" not in events(live, run)
    assert "silent" not in {a["state"] for a in live.operator.every("/agents")}
    assert told(live) == 1


def test_a_sleep_is_made_good_for_only_when_no_other_coordinator_was_there(coordinators: Callable[..., LiveCoordinator], bert: Any) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    hand.take(run)
    with live.database.transaction() as session:
        replicas.enter(session, "hom_other", read_clocks().wall)
    sleep_an_hour(live)
    wait_for(lambda: "lease_lapsed" in events(live, run), limit=10)
    assert told(live) == 0


def test_what_is_meant_for_an_agent_waits_for_it_after_a_sleep_too(coordinators: Callable[..., LiveCoordinator], bert: Any) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    hand, other = Hand(live), Hand(live)
    run = start_run(live, "bert", [hand, other], schedule={"agents": "fixed", "reassign_after_s": 600})
    hand.me(), other.me()
    sleep_an_hour(live)
    assert other.claim(run) is None, "it is the other's for ten minutes, and nobody was there to give it"
    assert hand.claim(run, 5) is not None


@pytest.mark.parametrize("moved", [timedelta(days=1), timedelta(days=-1)])
def test_a_clock_that_is_set_moves_no_deadline(coordinators: Callable[..., LiveCoordinator], bert: Any, moved: timedelta) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    hand = Hand(live)
    run = start_run(live, "bert", [hand], lease_s=60)
    held = hand.take(run)
    absence: Absence = live.app.state.absence

    def set_clock() -> Moment:
        now = read_clocks()
        return Moment(now.wall + moved, now.elapsed)

    with absence._lock:
        absence._clocks = set_clock
        absence._look()
        expires = row(live, held.assignment_id).lease_expires_at
        absence._clocks = read_clocks
    assert expires is not None
    assert abs(expires - set_clock().wall - timedelta(seconds=60)) < timedelta(seconds=10)
    assert absence.steady_s() < 30, "nothing is deleted by its age for a while"
    wait_for(lambda: told(live) == 2, limit=10)  # it was set back
    expires = row(live, held.assignment_id).lease_expires_at
    assert expires is not None
    assert timedelta(seconds=40) < expires - read_clocks().wall <= timedelta(seconds=60), "a lease given while it was ahead is no longer"


def test_what_was_noted_while_the_clock_was_ahead_is_not_in_the_future_after_a_start(
    coordinators: Callable[..., LiveCoordinator], bert: Any
) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    hand.me()
    settled(live, run)  # what a job notes just then would be in each other's way with what is written here
    now: datetime = read_clocks().wall
    with live.database.transaction() as session:
        for assignment in session.query(Assignment):
            assignment.waiting_since = now + timedelta(days=1)
        for agent in session.query(Agent):
            agent.last_seen_at = now + timedelta(days=1)
        leases.after_absence(session, now, timedelta())
        assert {a.waiting_since for a in session.query(Assignment)} == {now}
        assert {a.last_seen_at for a in session.query(Agent) if a.state == "active"} == {now}
    assert wire(live, hand.key).get("/agents/me").status_code == 200
    hand.take(run)


def test_a_coordinator_at_work_is_never_absent(live: LiveCoordinator) -> None:
    hand = Hand(live)
    before = told(live)
    for _ in range(20):
        hand.me()
    assert told(live) == before


def test_nothing_is_held_up_by_what_a_clock_noted_that_was_ahead(live: LiveCoordinator, hand: Hand) -> None:
    now = utcnow()
    ahead = now + timedelta(days=1)
    assert needs_seen("active", ahead, now), "a sign of life that was written by it is none"
    assert not arrivals.is_checked(StoredUpload(checked_until=ahead), now)
    with live.database.reading() as session:
        mallory = session.query(Agent).where(Agent.name == hand.name).one().id
        session.add(Replica(id="rep_gone", home="hom_gone", started_at=ahead, seen_at=ahead, waiting_claims=0, version="1", serves=True))
        assert not replicas.is_another_alive(session, home_id(live.settings.home), now)
        assert "rep_gone" not in {row.id for row in replicas.alive(session, now)}
        for _ in range(OFTEN):
            record_at_most(session, ahead, "warning", "agent_copied", "then", mallory)
        record_at_most(session, now, "warning", "agent_copied", "now", mallory)
        session.flush()
        newest = session.query(Event).order_by(Event.id.desc()).first()
        assert newest is not None
        assert newest.message == "now"
        session.add(Webhook(address="a" * 64, told=newest.id - 2, next_at=ahead, failing_since=ahead))
        session.flush()
        assert not webhooks.is_due(session, "a" * 64, "info", now)
        leases.after_absence(session, now, timedelta(days=-1))
        assert webhooks.take(session, "a" * 64, "info", now) == newest.id - 1, "one that lies ahead is told too"
