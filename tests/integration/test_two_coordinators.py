"""Two coordinators on one PostgreSQL database, each with a home of its own: what one does the other knows at once."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select

from fedcybgd.client.connection import Connection
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Agent, Assignment
from fedcybgd.coordinator.parts import Parts, local
from fedcybgd.coordinator.services.path import claim
from fedcybgd.coordinator.services.path.lease import Leased
from fedcybgd.coordinator.services.upkeep import silence
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.words import DAEMON
from tests.support.engines import EngineThread
from tests.support.live import LiveCoordinator
from tests.support.memory_store import Memory, MemoryStore, MemoryUploads
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for
from tests.support.visits import Hand, at, events, refused, start_run

pytestmark = [pytest.mark.database_decides, pytest.mark.postgresql]
Start = Callable[[str], LiveCoordinator]


@pytest.fixture
def start(postgres: PostgresServer, tmp_path: Path) -> Iterator[Start]:
    """Starts a coordinator with a home of its own; database, blobs and uploads are everybody's."""
    url, memory = postgres.database_with_schema(), Memory()
    started: list[LiveCoordinator] = []

    def parts(settings: Settings, database: Database) -> Parts:
        store = MemoryStore(memory)
        return replace(local(settings, database), store=store, uploads=MemoryUploads(memory), new_engine=partial(EngineThread, store))

    def start(name: str) -> LiveCoordinator:
        started.append(LiveCoordinator(tmp_path / name, url, parts=parts, sweep_every_s=60, shared=tmp_path / "shared"))
        wait_for(lambda: started[-1].app.state.wakes.listens())
        for live in started:  # each makes the operator's key anew
            live.operator_key, live.operator = started[-1].operator_key, Connection(live.url, started[-1].operator_key)
        return started[-1]

    yield start
    for live in started:
        live.stop()


def test_an_agent_that_waits_at_one_is_answered_when_the_other_opens_its_round(start: Start, bert: Path) -> None:
    one, other = start("one"), start("other")
    other.add_model("bert", bert)
    hand, waiting = Hand(other), Hand(other)
    at(hand, one)
    run = start_run(other, "bert", [hand, waiting], schedule={"agents": "fixed"})
    first = hand.take(run)
    with ThreadPoolExecutor(1) as thread:
        claim = thread.submit(waiting.claim, run, wait=20)
        wait_for(lambda: len(other.app.state.waiting) == 1)
        hand.deliver(first)
        got = claim.result()
    assert got is not None, "the sweeper looks once in a minute: it was the news that told it"
    assert (got.round, got.attempt) == (1, 1)


def test_a_key_that_is_revoked_or_changed_at_one_is_void_at_the_other_in_a_moment(start: Start) -> None:
    one, other = start("one"), start("other")
    gone, rotated = Hand(one), Hand(one)
    for hand in (gone, rotated):
        assert at(hand, other).claim("*") is None, "it is known there"
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(gone.http.post, "/assignments/claim", params={"wait": 20}, json={})
        wait_for(lambda: len(other.app.state.waiting) == 1)
        one.operator.post(f"/agents/{gone.name}/revoke")
        refused(waits.result(), 403, "agent_revoked")
    refused(gone.http.post("/assignments/claim", params={"wait": 0}, json={}), 403, "agent_revoked")
    assert at(rotated, one).http.post("/agents/me/key").status_code == 200
    there = at(rotated, other).http  # the news may be on its way
    wait_for(lambda: there.post("/assignments/claim", params={"wait": 0}, json={}).status_code != 204, limit=2)
    refused(there.post("/assignments/claim", params={"wait": 0}, json={}), 401, "unauthorized")


def test_while_it_may_miss_news_a_coordinator_believes_no_key_that_it_knew(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = start("one"), start("other")
    hand = Hand(one)
    assert at(hand, other).claim("*") is None
    monkeypatch.setattr(other.app.state.wakes._notices, "listens", False)
    monkeypatch.setattr(other.app.state.wakes, "_heard", lambda _: None)
    monkeypatch.setattr(other.app.state.wakes._notices, "_heard", lambda _: None)
    one.operator.post(f"/agents/{hand.name}/revoke")
    refused(hand.http.post("/assignments/claim", params={"wait": 0}, json={}), 403, "agent_revoked")


def test_who_may_have_missed_news_lets_everybody_ask_anew_and_believes_nobody(start: Start) -> None:
    import psycopg

    other = start("other")
    hand = Hand(other)
    assert hand.claim("*") is None, "it is known there"
    began = time.monotonic()
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(hand.claim, "*", 60)
        wait_for(lambda: len(other.app.state.waiting) == 1)
        with psycopg.connect(other.database.url, autocommit=True) as connection:
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
            assert connection.execute(ended, ["fedcoord-notices"]).fetchall() == [(True,)]
        assert waits.result() is None
    assert time.monotonic() - began < 50, "it was let go"
    assert other.app.state.attendance._known == {}
    wait_for(other.app.state.wakes.listens)


def asks(hand: Hand, live: LiveCoordinator, daemon: str, memory: int = 1) -> int:
    asked = {"runs": ["nothing"], "limits": {"memory_bytes": memory}}
    return at(hand, live).http.post("/assignments/claim", params={"wait": 0}, json=asked, headers={DAEMON: daemon * 16}).status_code


def test_a_daemon_that_came_for_the_first_time_is_known_to_the_other_when_it_asks_there(start: Start) -> None:
    """It is told nothing: thousands that come at once would be as many notices to everybody."""
    one, other = start("one"), start("other")
    hand = Hand(one)
    at(hand, other).me()
    assert len(other.app.state.attendance._known) == 1, "as it enrolled: without a daemon"
    assert asks(hand, one, "a", memory=2) == 204
    assert asks(hand, other, "a", memory=1) == 204
    with one.database.reading() as session:
        assert session.scalars(select(Agent.limits)).one().memory_bytes == 1, "as it said last, wherever"
    assert asks(hand, one, "a", memory=2) == 204
    with one.database.reading() as session:
        assert session.scalars(select(Agent.limits)).one().memory_bytes == 2
    wait_for(lambda: not other.app.state.attendance._known)
    assert asks(hand, other, "b", memory=2) == 204
    wait_for(lambda: not one.app.state.attendance._known)
    assert asks(hand, one, "a", memory=2) == 409


def test_of_agents_that_came_and_are_gone_nobody_keeps_anything(start: Start) -> None:
    both = start("one"), start("other")
    hands = [Hand(both[0], seen=False) for _ in range(5)]
    for hand in hands:
        for live in both:
            assert asks(hand, live, "a") == 204
    assert [len(live.app.state.attendance._known) for live in both] == [5, 5]
    with both[0].database.transaction() as session:
        silence.silence(session, utcnow() + timedelta(seconds=1), timedelta())
    for live in both:
        kept = live.app.state.attendance
        wait_for(lambda kept=kept: not kept._known)
        assert (kept._hashes, kept._looks, kept._signs) == ({}, set(), {})
        assert len(live.app.state.waiting) == 0


def test_what_an_agent_got_from_one_whose_answer_was_lost_it_gets_from_the_other_at_once(start: Start, bert: Path) -> None:
    one, other = start("one"), start("other")
    one.add_model("bert", bert)
    hand = Hand(one)
    assert at(hand, other).claim("*") is None, "known there, and holding nothing"
    run = start_run(one, "bert", [hand], lease_s=300)
    lost = at(hand, one).take(run)
    other.app.state.waiting.changed()  # as once a second
    wait_for(lambda: not other.app.state.waiting.stale)
    again = at(hand, other).claim(run, wait=20)
    assert again is not None
    assert (again.assignment_id, again.attempt) == (lost.assignment_id, 2)


def test_an_agent_that_waits_at_one_is_told_that_the_other_has_leased_it_something(
    start: Start, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim whose connection was cut is answered there, as long as nobody has noticed the cut."""
    one, other = start("one"), start("other")
    one.add_model("bert", bert)
    hand = Hand(one)
    run = start_run(one, "bert", [hand], schedule={"agents": "fixed"}, lease_s=300)
    one.operator.post(f"/runs/{run}/pause")
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(at(hand, other).claim, run, 20)
        wait_for(lambda: len(other.app.state.waiting) == 1)
        with one.database.transaction() as session:
            agent = session.scalars(select(Agent).where(Agent.name == hand.name)).one().id
        monkeypatch.setattr(other.app.state.waiting, "changed", lambda *_: None)  # it is not told what is open
        one.operator.post(f"/runs/{run}/resume")
        with one.database.transaction() as session:
            found = claim.claim(session, agent, ClaimRequest(runs=[run]), utcnow())
        assert isinstance(found, Leased)
        got = waits.result()
    assert got is not None
    assert got.assignment_id == found.assignment.assignment_id


def test_a_coordinator_that_starts_takes_nothing_from_one_that_lives(start: Start, bert: Path) -> None:
    one = start("one")
    one.add_model("bert", bert)
    hand = Hand(one)
    run = start_run(one, "bert", [hand], lease_s=300)
    held = hand.take(run)
    with one.database.transaction() as session:
        row = session.get_one(Assignment, held.assignment_id)
        row.lease_expires_at = before = utcnow() + timedelta(seconds=100)
    other = start("other")
    with other.database.reading() as session:
        assert session.get_one(Assignment, held.assignment_id).lease_expires_at == before, "nobody was away"
    at(hand, other).deliver(held)
    wait_for(lambda: other.operator.get(f"/runs/{run}")["rounds_done"] == 1)
    assert not {"job_lapsed", "coordinator_absent"} & set(events(other, run))
