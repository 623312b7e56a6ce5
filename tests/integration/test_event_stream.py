"""Events are told within a second to whoever listens; who was cut off goes on by id, and hears each once."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice

import pytest

from fedcybgd.client.client import Client
from fedcybgd.client.errors import CoordinatorAway
from fedcybgd.coordinator.api import event_stream
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.wakes import event_feed
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import fresh, operator, refused, wire


def happen(live: LiveCoordinator, number: int, code: str) -> None:
    for _ in range(number):
        with live.database.transaction() as session:
            record(session, utcnow(), "info", code, "it happened")


class Listener:
    """Hears in a thread of its own."""

    def __init__(self, live: LiveCoordinator, after: int | None, number: int, code: str, patience_s: float = 20) -> None:
        self.ids: list[int] = []
        self.away = False

        def hear() -> None:
            with Client(live.url, live.operator_key, patience_s=patience_s) as client:
                try:
                    for event in islice((e for e in client.events(after, timeout_s=60) if e.code == code), number):
                        self.ids.append(event.id)
                except CoordinatorAway:
                    self.away = True

        self.thread = threading.Thread(target=hear)
        self.thread.start()


def newest(live: LiveCoordinator) -> int:
    return int(live.operator.get("/events", limit=1)[0]["id"])


def listening(live: LiveCoordinator, number: int = 1) -> None:
    wait_for(lambda: len(live.app.state.feed) >= number, limit=20)
    time.sleep(2 * event_feed.EVERY_S)  # from now on: it has looked what the newest is


@pytest.mark.database_decides
def test_it_is_told_at_once_and_once_to_all(live: LiveCoordinator) -> None:
    code = fresh("told")
    listeners = [Listener(live, None, 5, code) for _ in range(3)]
    listening(live, 3)
    happen(live, 5, code)
    for listener in listeners:
        listener.thread.join(20)
        assert len(listener.ids) == 5
        assert listener.ids == sorted(set(listener.ids))
    wait_for(lambda: len(live.app.state.feed) == 0, limit=20)


def test_what_was_missed_is_told_first(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "TOGETHER", 4)
    code = fresh("missed")
    happen(live, 1, code)
    before = newest(live)
    happen(live, 10, code)
    listener = Listener(live, before, 13, code)
    wait_for(lambda: len(listener.ids) == 10, limit=20)
    happen(live, 3, code)
    listener.thread.join(20)
    assert len(listener.ids) == 13
    assert listener.ids == sorted(set(listener.ids))
    assert listener.ids[0] > before


def test_who_is_cut_off_goes_on_where_it_was(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the end that every stream has."""
    monkeypatch.setattr(event_stream, "LASTS_S", 1.0)
    code = fresh("cut")
    happen(live, 1, code)
    listener = Listener(live, newest(live), 30, code)
    for _ in range(10):
        happen(live, 3, code)
        time.sleep(0.3)
    listener.thread.join(30)
    assert len(listener.ids) == len(set(listener.ids)) == 30


def test_nobody_listens_who_may_not_and_not_too_many(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wire(live).get("/events/stream").status_code == 401
    refused(operator(live).get("/events/stream?after=-1"), 422, "invalid_request")
    refused(operator(live).get("/events/stream", headers={"Last-Event-ID": "x"}), 422, "invalid_request")
    monkeypatch.setattr(event_feed, "LISTENERS", 0)
    refused(operator(live).get("/events/stream"), 503, "feed_full")


def test_one_operator_does_not_shut_the_others_out(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "OF_ONE", 1)
    name, code = fresh("curious"), fresh("heard")
    viewer = wire(live, live.operator.post("/operators", {"name": name, "role": "viewer"})["key"])
    with viewer.stream("GET", "/events/stream"):
        listening(live)
        assert name in refused(viewer.get("/events/stream"), 503, "feed_full").message
        listener = Listener(live, None, 1, code)
        listening(live, 2)
        happen(live, 1, code)
        listener.thread.join(20)
        assert len(listener.ids) == 1


@pytest.mark.one_database
def test_who_listens_does_not_hold_up_a_coordinator_that_stops(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators()
    listener = Listener(live, None, 1, fresh("never"), patience_s=0)
    listening(live)
    began = time.monotonic()
    live.stop()
    assert time.monotonic() - began < 10
    assert not live._thread.is_alive()
    listener.thread.join(20)
    assert listener.away


def test_who_has_heard_nothing_yet_misses_nothing_between_two_streams(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "LASTS_S", 0.3)
    monkeypatch.setattr("fedcybgd.client.event_stream.PAUSE_S", 0.0)
    code = fresh("between")
    ends = threading.Event()
    ask = Client.events.__globals__["follow"].__globals__["_stream"]

    def once(*given: object) -> Iterator[object]:
        yield from ask(*given)
        if not ends.is_set():
            happen(live, 1, code)  # between the first stream and the next
            ends.set()

    monkeypatch.setattr("fedcybgd.client.event_stream._stream", once)
    listener = Listener(live, None, 1, code)
    listener.thread.join(20)
    assert len(listener.ids) == 1
