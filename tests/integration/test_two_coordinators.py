"""Two coordinators on one database, with a bus in the place of one process's memory: the seams are where a second one needs them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Assignment
from fedcybgd.coordinator.parts import Parts, local
from fedcybgd.coordinator.settings import Settings
from tests.support.bus import Bus, BusWakes
from tests.support.engines import EngineThread
from tests.support.live import LiveCoordinator
from tests.support.memory_store import Memory, MemoryStore, MemoryUploads
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for
from tests.support.visits import Hand, events, start_run

Start = Callable[[str], LiveCoordinator]


@pytest.fixture
def start(postgres: PostgresServer, tmp_path: Path) -> Iterator[Start]:
    """Starts a coordinator with a home of its own; database, blobs, uploads and news are everybody's."""
    url, memory, bus = postgres.new_database(), Memory(), Bus()
    started: list[LiveCoordinator] = []

    def parts(settings: Settings) -> Parts:
        store = MemoryStore(memory)
        return replace(
            local(settings), store=store, uploads=MemoryUploads(memory), new_engine=partial(EngineThread, store), wakes=BusWakes(bus)
        )

    def start(name: str) -> LiveCoordinator:
        started.append(LiveCoordinator(tmp_path / name, url, parts=parts, sweep_every_s=60))
        return started[-1]

    yield start
    for live in started:
        live.stop()


@pytest.mark.database_decides
@pytest.mark.postgresql
def test_an_agent_that_waits_at_one_is_answered_when_the_other_opens_its_round(start: Start, bert: Path) -> None:
    one, other = start("one"), start("other")
    other.add_model("bert", bert)
    hand, waiting = Hand(other), Hand(other)
    hand.http.base_url = one.url + "/v1"
    run = start_run(other, "bert", [hand, waiting], schedule={"agents": "fixed"})
    first = hand.take(run)
    with ThreadPoolExecutor(1) as thread:
        claim = thread.submit(waiting.claim, run, wait=20)
        wait_for(lambda: len(other.app.state.waiting) == 1)
        hand.deliver(first)
        got = claim.result()
    assert got is not None, "the sweeper looks once in a minute: it was the news that told it"
    assert (got.round, got.attempt) == (1, 1)


@pytest.mark.database_decides
@pytest.mark.postgresql
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
    hand.http.base_url = other.url + "/v1"
    hand.deliver(held)
    wait_for(lambda: other.operator.get(f"/runs/{run}")["rounds_done"] == 1)
    assert not {"job_lapsed", "coordinator_absent"} & set(events(other, run))
