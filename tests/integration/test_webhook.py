"""A receiver hears every event once it can, in their order, signed; also across restarts of the coordinator."""

import base64
import hashlib
import hmac
import json
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import select

from fedcybgd.coordinator import webhook
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Event, Webhook
from fedcybgd.coordinator.domain.webhook import GIVEN_UP_AFTER
from fedcybgd.coordinator.services.operate import webhooks
from fedcybgd.coordinator.services.records.events import record
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for


class Receiver:
    """Real HTTP; answers what the test says, and keeps what it has taken."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.headings: list[dict[str, str]] = []
        self.raw: list[bytes] = []
        self.status, self.refused = 200, 0
        self.answers = threading.Event()
        self.answers.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if outer.status == 200:
                    outer.raw.append(body)
                    outer.headings.append({k.lower(): v for k, v in self.headers.items()})
                    outer.taken.append(json.loads(body))
                else:
                    outer.refused += 1
                outer.answers.wait()
                self.send_response(outer.status)
                self.send_header("location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()

    def codes(self) -> list[str]:
        return [one["type"] for one in self.taken]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def happen(live: LiveCoordinator, *codes: str, level: Any = "warning") -> None:
    for code in codes:
        with live.database.transaction() as session:
            record(session, utcnow(), level, code, f"what {code} means")


def hurry(live: LiveCoordinator) -> None:
    """The time of the next try has come."""
    with live.database.transaction() as session:
        session.scalars(select(Webhook)).one().next_at = utcnow()


@pytest.mark.one_database
def test_each_event_is_told_in_order_and_signed(coordinators: Callable[..., LiveCoordinator], receiver: Receiver) -> None:
    live = coordinators(webhook_url=receiver.url)
    happen(live, "first", "second")
    happen(live, "not_told", level="info")
    happen(live, "third", level="error")
    wait_for(lambda: len(receiver.taken) == 3, limit=30)
    assert receiver.codes() == ["first", "second", "third"]
    secret = base64.b64decode(live.settings.webhook_secret.read_text().strip().removeprefix("whsec_"))
    for heads, body in zip(receiver.headings, receiver.raw, strict=True):
        said = f"{heads['webhook-id']}.{heads['webhook-timestamp']}.".encode() + body
        assert heads["webhook-signature"] == "v1," + base64.b64encode(hmac.new(secret, said, hashlib.sha256).digest()).decode()
    assert receiver.taken[2]["data"]["message"] == "what third means"
    assert len({heads["webhook-id"] for heads in receiver.headings}) == 3


@pytest.mark.database_decides
def test_what_is_not_taken_is_told_again_also_by_the_next_coordinator(
    coordinators: Callable[..., LiveCoordinator], receiver: Receiver
) -> None:
    receiver.status = 302  # which is not followed
    live = coordinators(webhook_url=receiver.url)
    happen(live, "first", "second")
    wait_for(lambda: receiver.refused == 1, limit=30)
    wait_for(lambda: any(e["code"] == "webhook_refused" for e in live.operator.every("/events")), limit=10)
    live.stop()
    receiver.status = 200
    live = coordinators(webhook_url=receiver.url)
    hurry(live)
    wait_for(lambda: any(e["code"] == "webhook_taken" for e in live.operator.every("/events")), limit=30)
    happen(live, "third")
    wait_for(lambda: "third" in receiver.codes(), limit=30)
    assert receiver.codes() == ["first", "second", "third"], "but not of itself: that it was not told at once"


@pytest.mark.one_database
def test_why_a_receiver_did_not_take_it_is_said(
    coordinators: Callable[..., LiveCoordinator], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.2)
    receiver.answers.clear()
    live = coordinators(webhook_url=receiver.url)
    happen(live, "first")
    wait_for(lambda: any("ReadTimeout" in e["message"] for e in live.operator.every("/events") if e["code"] == "webhook_refused"), limit=30)


@pytest.mark.one_database
def test_a_receiver_that_hangs_holds_up_no_stop_and_its_address_is_in_no_log(
    coordinators: Callable[..., LiveCoordinator], receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    live = coordinators(webhook_url=f"{receiver.url}/very-secret")
    happen(live, "first")
    wait_for(lambda: receiver.codes() == ["first"], limit=30)
    receiver.answers.clear()
    happen(live, "second")
    wait_for(lambda: receiver.codes() == ["first", "second"], limit=30)
    live.stop()
    assert not live._thread.is_alive()
    assert not any(
        within.f_code.co_filename == webhook.__file__
        for frame in sys._current_frames().values()
        for within, _ in traceback.walk_stack(frame)
    ), "a thread that still waits is waited for when the process ends"
    assert "very-secret" not in caplog.text


@pytest.mark.database_decides
def test_two_coordinators_tell_an_event_once_and_none_waits_for_ever(live: LiveCoordinator) -> None:
    address, now = webhooks.address_of("https://nowhere.example/hook"), utcnow()
    with live.database.transaction() as session:
        webhooks.begin(session, address, now)
        record(session, now, "error", "one", "what happened")
    later = now + webhooks.SETTLED * 2
    with live.database.transaction() as session:
        event = webhooks.take(session, address, "error", later)
        assert event is not None
    with live.database.transaction() as session:
        assert webhooks.take(session, address, "error", later) is None, "another one is at it"
        assert webhooks.take(session, address, "error", later + webhooks.HELD) == event, "who did not come back"
        webhooks.refused(session, address, event, "it answers 500", later)
        webhooks.refused(session, address, event, "it answers 500", later + GIVEN_UP_AFTER)
        assert session.scalars(select(Event.code).order_by(Event.id.desc()).limit(1)).one() == "webhook_given_up"
        assert session.get_one(Webhook, address).told == event
        session.delete(session.get_one(Webhook, address))


@pytest.mark.one_database
def test_where_nothing_happens_nothing_is_written(coordinators: Callable[..., LiveCoordinator], receiver: Receiver) -> None:
    live = coordinators(webhook_url=receiver.url)
    happen(live, "first")
    wait_for(lambda: receiver.codes() == ["first"], limit=30)

    def next_at() -> datetime:
        with live.database.reading() as session:
            return session.scalars(select(Webhook.next_at)).one()

    wait_for(lambda: next_at() <= utcnow(), limit=10)  # that it was taken is written down
    before = next_at()
    looks: list[bool] = []
    look = webhooks.is_due

    def counted(*given: Any) -> bool:
        looks.append(look(*given))
        return looks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webhooks, "is_due", counted)
        wait_for(lambda: len(looks) >= 2, limit=30)
    assert looks == [False] * len(looks)
    assert next_at() == before
