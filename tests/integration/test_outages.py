"""A database that is away is weather: nothing is lost, nothing is paused, and it goes on by itself."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Connection, Engine, event, make_url, select

import fedcybgd.coordinator.engine.admit
from fedcybgd.coordinator.db.models import Job
from fedcybgd.coordinator.domain.jobs.lease import Hold
from fedcybgd.coordinator.services import outcomes
from fedcybgd.coordinator.services.records import keys
from tests.support.engines import EngineThread
from tests.support.live import LiveCoordinator
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for
from tests.support.visits import Hand, events, refused, settled, start_run, versions, wire

pytestmark = pytest.mark.database_decides

Coordinators = Callable[..., LiveCoordinator]


MODES: dict[str, str] = {}
"""SQLite's query_only of a database, by its path"""


@event.listens_for(Engine, "begin")  # here, for a listener cannot be added to an engine that is at work
def set_mode(connection: Connection) -> None:
    if (mode := MODES.get(str(connection.engine.url.database))) is not None:
        sqlite: Any = connection.connection.driver_connection
        sqlite.execute(f"PRAGMA query_only={mode}")


class Outage:
    """Takes the database away from a coordinator, by the database's own means."""

    def __init__(self, live: LiveCoordinator) -> None:
        self._url = make_url(live.database.url)

    def begin(self) -> None:
        """From now on nobody gets a connection (PostgreSQL), or nobody may write (SQLite)."""
        if self._url.get_backend_name() == "sqlite":
            MODES[str(self._url.database)] = "ON"
        else:
            self._admin(f"ALTER DATABASE {self._url.database} ALLOW_CONNECTIONS false")
            self.cut()

    def cut(self, only: int | None = None) -> None:
        """The connections there are, end: all of them, or that of one server process."""
        which = f"pid = {only}" if only else f"datname = '{self._url.database}'"
        self._admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which}")

    def end(self) -> None:
        if self._url.get_backend_name() == "sqlite":
            MODES[str(self._url.database)] = "OFF"
        else:
            self._admin(f"ALTER DATABASE {self._url.database} ALLOW_CONNECTIONS true")

    def _admin(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(f"postgresql://fed@{self._url.host}:{self._url.port}/postgres", autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]


@pytest.fixture
def live(coordinators: Coordinators, bert: Path) -> LiveCoordinator:
    live = coordinators()
    live.add_model("bert", bert)
    return live


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """An engine function that begins, and ends when it is let go on."""
    began, go_on, real = threading.Event(), threading.Event(), getattr(module, name)

    def slow(*given: Any) -> Any:
        began.set()
        assert go_on.wait(60)
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, slow)
        yield began, go_on
        go_on.set()


def job_of(live: LiveCoordinator, kind: str) -> Job:
    with live.database.reading() as session:
        return session.scalars(select(Job).where(Job.kind == kind).order_by(Job.created_at)).one()


def went_well(live: LiveCoordinator, run: str) -> None:
    wait_for(lambda: job_of(live, "admit").state == "done", limit=30)
    view = settled(live, run)
    assert (view["state"], view["reason"], view["rounds_done"]) == ("running", None, 1)
    assert versions(live, run)["layers.0"] == 1
    assert not {"engine_failed", "worker_died", "run_paused"} & set(events(live, run))
    assert job_of(live, "admit").tries == 1


def test_what_came_of_a_job_is_written_when_the_database_is_back(
    live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    outage = Outage(live)
    with held_up(monkeypatch, fedcybgd.coordinator.engine.admit, "admit") as (began, go_on):
        hand.deliver(hand.take(run))
        assert began.wait(10)
        outage.begin()
        go_on.set()
        wait_for(lambda: caplog.text.count("cannot write what came of job") >= 1, limit=30)
        answer = refused(hand.http.post("/agents/me/key"), 503, "database_away")
        assert "SELECT" not in answer.message
        outage.end()
    went_well(live, run)
    assert "[SQL:" not in caplog.text


def test_a_connection_lost_while_the_outcome_is_written_is_no_failure(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    outage = Outage(live)
    real, times = outcomes.complete, []

    def complete(session: Any, hold: Hold, result: BaseModel, now: datetime) -> None:
        if session.get_one(Job, hold.job).kind == "admit":
            times.append(hold.job)
        if times == [hold.job]:
            connection = session.connection().connection.driver_connection
            if live.database.engine.dialect.name == "sqlite":
                connection.execute("PRAGMA query_only=ON")
            else:
                outage.cut(connection.info.backend_pid)
        real(session, hold, result, now)

    with monkeypatch.context() as patch:
        patch.setattr(outcomes, "complete", complete)
        hand.deliver(hand.take(run))
        went_well(live, run)
    assert times[0] == times[1]


def test_a_result_that_cannot_take_effect_is_a_failure_without_its_sql(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours is not waited out."""
    from sqlalchemy import text

    hand = Hand(live)
    run = start_run(live, "bert", [hand])

    real = outcomes.complete

    def broken(session: Any, hold: Hold, result: BaseModel, now: datetime) -> None:
        if session.get_one(Job, hold.job).kind == "admit":
            session.execute(text("SELECT * FROM nowhere"))
        real(session, hold, result, now)

    with monkeypatch.context() as patch:
        patch.setattr(outcomes, "complete", broken)
        hand.deliver(hand.take(run))
        wait_for(lambda: live.state_of(run) == "paused")
    reason = live.operator.get(f"/runs/{run}")["reason"]
    assert "nowhere" in reason
    assert "SELECT" not in reason
    live.operator.post(f"/runs/{run}/resume")
    assert settled(live, run)["rounds_done"] == 1


def test_a_lane_outlasts_an_engine_that_cannot_be_started(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    lane = next(lane for lane in live.app.state.jobs._lanes if lane.name == "quick")
    tries: list[int] = []

    def dead() -> None:
        raise OSError("killed")

    def new_engine() -> EngineThread:
        tries.append(1)
        if len(tries) < 4:
            raise OSError(24, "Too many open files")
        return EngineThread(live.store)

    monkeypatch.setattr(lane, "_new_engine", new_engine)
    lane._engine = EngineThread(live.store, dead)  # dies under the first job that it gets
    hand.deliver(hand.take(run))
    view = settled(live, run)
    assert (view["state"], view["rounds_done"], len(tries)) == ("running", 1, 4)


def test_the_sweeper_and_the_lanes_go_on_after_an_outage(live: LiveCoordinator, caplog: pytest.LogCaptureFixture) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    outage = Outage(live)
    outage.begin()
    for _ in range(5):
        refused(hand.http.post("/agents/me/key"), 503, "database_away")
    outage.end()
    hand.deliver(hand.take(run, wait=30))
    went_well(live, run)
    assert "Traceback" not in caplog.text
    assert caplog.text.count("the database is away") <= 2


@pytest.mark.one_database
def test_whose_key_has_to_be_looked_up_is_told_too(postgres: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An operator, a stranger, an agent that has not been here yet: they are stopped before any route hears of them."""
    live = LiveCoordinator(tmp_path / "home", postgres.database_with_schema())
    try:
        newcomer, outage, asking = Hand(live), Outage(live), wire(live)
        operator = {"Authorization": f"Bearer {live.operator_key}"}
        live.app.state.attendance.forget_all()
        outage.begin()
        for answer in (
            asking.get("/runs", headers=operator),
            asking.post("/runs/x/pause", headers=operator),
            asking.get("/runs", headers={"Authorization": f"Bearer {keys.OPERATOR}wrong"}),
            newcomer.http.get("/agents/me"),
        ):
            refused(answer, 503, "database_away")
        outage.end()
        wait_for(lambda: asking.get("/runs", headers=operator).status_code == 200, limit=20)
        assert newcomer.http.get("/agents/me").status_code == 200
    finally:
        live.stop()
    assert "Traceback" not in caplog.text
