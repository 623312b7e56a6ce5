"""What coordinators on one database do once for all of them, and what they must have in common."""

import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from fedcybgd.coordinator import common, sweeper
from fedcybgd.coordinator.absence import Absence
from fedcybgd.coordinator.cli import app
from fedcybgd.coordinator.common import StoreDiffers
from fedcybgd.coordinator.db import base, migrate
from fedcybgd.coordinator.db.alone import SWEEPING, unless_another
from fedcybgd.coordinator.db.base import BESIDE, LISTENING, Database, DatabaseEncodingUnusable, utcnow
from fedcybgd.coordinator.db.models import Event, Replica
from fedcybgd.coordinator.home import DatabaseUnusable, SchemaTooOld
from fedcybgd.coordinator.serve import prepare_home
from fedcybgd.coordinator.services.operate import webhooks
from fedcybgd.coordinator.services.records import instance, replicas
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage.full import FullDisks
from tests.support.live import LiveCoordinator
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for
from tests.support.visits import Hand, refused, wire
from tests.test_docs import ROOT

pytestmark = [pytest.mark.database_decides, pytest.mark.postgresql]


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.database_with_schema()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()


def test_what_one_does_for_all_no_other_does_meanwhile(database: Database, url: str) -> None:
    other = Database(url)
    with unless_another(database.engine, SWEEPING, 60) as mine, unless_another(other.engine, SWEEPING, 60) as too:
        assert (mine, too) == (True, False)
    with unless_another(other.engine, SWEEPING, 60) as mine:
        assert mine
    other.close()


def test_who_hangs_in_what_it_does_for_all_does_not_keep_others_from_it(database: Database, url: str) -> None:
    other, free, seen = Database(url), threading.Event(), list[bool]()

    def hang() -> None:
        with unless_another(other.engine, SWEEPING, 1) as mine:
            seen.append(mine)
            assert free.wait(60)

    def hang_and_lose_its_place() -> None:
        with pytest.raises(DBAPIError):
            hang()

    thread = threading.Thread(target=hang_and_lose_its_place, daemon=True)
    thread.start()
    wait_for(lambda: seen == [True])

    def is_free() -> bool:
        with unless_another(database.engine, SWEEPING, 60) as mine:
            return mine

    wait_for(is_free)
    free.set()
    thread.join(10)
    other.close()


def test_a_coordinator_sweeps_when_no_other_does_and_always_sees_that_it_can_write(
    database: Database, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    swept, committed = list[int](), list[int]()
    # A coordinator of other tests may be sweeping in this process: its rounds are not counted.
    monkeypatch.setattr(sweeper, "sweep_leases", lambda _, swept_one, *__: swept.append(1) if swept_one is database else None)
    monkeypatch.setattr(sweeper, "discard_uploads", lambda *_: None)
    database.after_transaction = lambda: committed.append(1)
    given: Any = (Settings(home=tmp_path), database, None, None)
    other = Database(url)
    with unless_another(other.engine, SWEEPING, 60):
        sweeper.sweep_alone(*given)
    assert (swept, committed) == ([], [1])
    sweeper.sweep_alone(*given)
    assert swept == [1]
    other.close()


def test_the_one_that_has_lived_longest_tidies(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tidied: list[str] = []
    with database.transaction() as session:
        first = replicas.enter(session, "hom_first", utcnow() - timedelta(seconds=2))
        second = replicas.enter(session, "hom_second", utcnow())

    def tidy(replica: str) -> None:
        monkeypatch.setattr(sweeper, "tidy", lambda *_: tidied.append(replica))
        store: Any = type("Uploads", (), {"sweep": lambda *_: None})()
        sweeper.tidy_alone(Settings(home=tmp_path), database, store, store, replica)

    for replica in (second, first, second):
        tidy(replica)
    assert tidied == [first]
    with database.transaction() as session:
        replicas.leave(session, first)
    tidy(second)
    assert tidied == [first, second]


def test_claims_that_wait_are_counted_at_all_of_them(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "BEAT_EVERY_S", 0.1)
    one, other = (LiveCoordinator(tmp_path / name, url, shared=tmp_path / "shared") for name in ("one", "other"))
    hand = Hand(other)
    waits = threading.Thread(target=lambda: hand.claim("*", 30), daemon=True)
    waits.start()
    wait_for(lambda: len(other.app.state.waiting) == 1)

    def told(live: LiveCoordinator) -> tuple[int, int]:
        status = wire(live, other.operator_key).get("/status").json()
        return status["waiting_claims"], status["coordinators"]

    for live in (other, one):
        wait_for(lambda live=live: told(live) == (1, 2))
    other.stop()
    wait_for(lambda: wire(one, other.operator_key).get("/status").json()["coordinators"] == 1)
    one.stop()


def test_one_that_was_forgotten_is_there_again(database: Database) -> None:
    with database.transaction() as session:
        asleep = replicas.enter(session, "hom_asleep", utcnow() - replicas.FORGOTTEN - timedelta(minutes=1))
        awake = replicas.enter(session, "hom_awake", utcnow())
    with database.transaction() as session:
        replicas.beat(session, awake, "hom_awake", 3, utcnow())
        assert session.get(Replica, asleep) is None
    with database.transaction() as session:
        replicas.beat(session, asleep, "hom_asleep", 4, utcnow())
        assert [(one.id, one.waiting_claims) for one in replicas.alive(session, utcnow())] == [(awake, 3), (asleep, 4)]


def test_a_program_of_before_lives_beside_those_of_now(database: Database) -> None:
    """As the version before writes it."""
    with database.transaction() as session:
        now = utcnow()
        values = {"id": "rep_old", "home": "hom_old", "now": now}
        session.execute(text("INSERT INTO replica (id, home, started_at, seen_at) VALUES (:id, :home, :now, :now)"), values)
        assert [(one.id, one.waiting_claims, one.version) for one in replicas.alive(session, now)] == [("rep_old", 0, None)]
        assert replicas.lanes_done(session, now) == {"quick", "slow"}
        assert replicas.is_another_alive(session, "hom_new", now)


def test_of_a_disk_that_they_share_one_event_tells(database: Database, tmp_path: Path) -> None:
    for _ in range(2):
        disks = FullDisks(tmp_path)
        disks.lack(tmp_path, 1 << 62)
        sweeper.tell_of_disks(database, disks)
    with database.reading() as session:
        assert session.scalars(select(Event.code)).all() == ["disk_full"]


def test_a_webhook_waits_for_an_event_that_is_committed_late(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "SETTLED", timedelta())
    address = webhooks.address_of("https://nowhere.example/hook")

    def told() -> int | None:
        with database.transaction() as session:
            event = webhooks.take(session, address, "info", utcnow())
            if event is not None:
                webhooks.taken(session, address, event, utcnow())
            return event

    with database.transaction() as session:
        webhooks.begin(session, address, utcnow())
    with database.transaction() as late:
        record(late, utcnow(), "info", "late", "begun first")
        late.flush()
        with database.transaction() as session:
            record(session, utcnow(), "info", "soon", "committed first")
        assert told() is None
    with database.reading() as session:
        ids = list(session.scalars(select(Event.id).order_by(Event.id)))
    assert [told(), told(), told()] == [*ids, None]


# ---- what they have in common


def started(url: str, home: Path, shared: Path) -> None:
    prepare_home(Settings(home=home, database_url=url, shared=shared))


def test_who_has_its_blobs_elsewhere_than_one_that_lives_is_told_so(database: Database, url: str, tmp_path: Path) -> None:
    started(url, tmp_path / "one", tmp_path / "shared")
    started(url, tmp_path / "other", tmp_path / "shared")
    with database.transaction() as session:
        lives = replicas.enter(session, "hom_one", utcnow())
    with pytest.raises(StoreDiffers, match="FEDCOORD_SHARED"):
        started(url, tmp_path / "other", tmp_path / "elsewhere")
    with database.transaction() as session:
        replicas.leave(session, lives)
    started(url, tmp_path / "other", tmp_path / "elsewhere")  # where they lie now, when nobody else is there to say otherwise


def test_blobs_that_belong_to_another_database_are_not_shared_with_it(postgres: PostgresServer, url: str, tmp_path: Path) -> None:
    started(url, tmp_path / "one", tmp_path / "shared")
    with pytest.raises(StoreDiffers, match=re.escape(common.LABEL)):
        started(postgres.database_with_schema(), tmp_path / "other", tmp_path / "shared")
    with pytest.raises(StoreDiffers):
        prepare_home(Settings(home=tmp_path / "third", shared=tmp_path / "shared"))


def test_they_have_one_identity_and_one_signing_key(url: str, database: Database, tmp_path: Path) -> None:
    started(url, tmp_path / "one", tmp_path / "shared")
    secret = (tmp_path / "shared" / "signing.secret").read_text()
    started(url, tmp_path / "other", tmp_path / "shared")
    assert (tmp_path / "shared" / "signing.secret").read_text() == secret
    with database.transaction() as session:
        assert (tmp_path / "shared" / common.LABEL).read_text().split()[1] == instance.identity(session, utcnow())
    assert (tmp_path / "shared" / "operator.key").exists()


def test_the_schema_is_left_alone_where_it_is_said_so(postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.new_database()
    settings = Settings(home=tmp_path, database_url=url, migrate="never")
    with pytest.raises(SchemaTooOld, match="fedcoord db upgrade"):
        prepare_home(settings)
    monkeypatch.setenv("FEDCOORD_DATABASE_URL", url)
    monkeypatch.setenv("FEDCOORD_HOME", str(tmp_path))
    assert CliRunner().invoke(app, ["db", "upgrade"]).exit_code == 0
    prepare_home(settings)
    database = Database(url)
    migrate.downgrade(database.engine, "0037")
    with pytest.raises(SchemaTooOld, match="0037"):
        prepare_home(settings)
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseUnusable, match="newer"):
        prepare_home(settings)
    database.close()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_keep_every_text_is_refused(postgres: PostgresServer, tmp_path: Path, encoding: str) -> None:
    url = postgres.new_database("template0", f"ENCODING '{encoding}' LOCALE 'C'")
    with pytest.raises(DatabaseEncodingUnusable, match=encoding):
        prepare_home(Settings(home=tmp_path, database_url=url))


def test_three_of_them_fit_what_postgresql_gives_as_it_comes() -> None:
    """By the number that the documents and the compose file name."""
    threads = int(re.findall(r"FEDCOORD_THREADS: \"?(\d+)", (ROOT / "deploy/compose.replicas.yaml").read_text())[0])
    assert f"`FEDCOORD_THREADS={threads}`" in (ROOT / "docs/operating.md").read_text()
    assert 3 * (threads + BESIDE + LISTENING) <= 100 - 3


def test_one_that_would_take_more_connections_than_there_are_says_so(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with database.transaction() as session:
        replicas.enter(session, "hom_one", utcnow())
        common.tell_of_connections(session, 100, utcnow())
        assert "FEDCOORD_THREADS" not in caplog.text
        replicas.enter(session, "hom_other", utcnow())
        common.tell_of_connections(session, 100, utcnow())
    assert "may want 200 connections" in caplog.text


# ---- whether it can serve


def test_a_coordinator_is_ready_while_it_has_its_database_and_its_storage(postgres: PostgresServer, url: str, tmp_path: Path) -> None:
    live = LiveCoordinator(tmp_path / "home", url)
    http = wire(live)

    def ready() -> bool:
        return http.get("/health/ready").status_code == 200

    assert http.get("/health/ready").json()["status"] == "ok"
    with postgres.closed(url):
        wait_for(lambda: not ready())
        assert refused(http.get("/health/ready"), 503, "not_ready").detail == {"lacks": ["database"]}
        assert http.get("/health").status_code == 200, "it is up"
    wait_for(ready)
    incoming = live.settings.blobs / "incoming"
    incoming.rename(tmp_path / "away")
    wait_for(lambda: not ready())
    assert refused(http.get("/health/ready"), 503, "not_ready").detail == {"lacks": ["storage"]}
    (tmp_path / "away").rename(incoming)
    wait_for(ready)
    live.app.state.waiting.close()
    refused(http.get("/health/ready"), 503, "not_ready")
    live.stop()


def test_the_clock_of_the_database_counts_whatever_a_machine_says(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    true = base.machine_now
    absence = Absence(database, timedelta(seconds=1), "hom_mine")
    absence.watch()
    with monkeypatch.context() as wrong:
        wrong.setattr(base, "machine_now", lambda: true() + timedelta(hours=1))  # it is set while it runs
        with database.transaction() as session:
            assert abs(utcnow() - true()) < timedelta(seconds=5)
            assert session.query(Event).all() == [], "nobody was away"
        assert absence.times == 1, "what was looked up by the wrong time is not written"
    database.agree_on_time()
    assert (base.clock_differs(), abs(utcnow() - true()) < timedelta(seconds=2)) == (timedelta(), True)


def told(live: LiveCoordinator) -> Any:
    """The last word about a clock."""
    return wait_for(lambda: next((e for e in live.operator.get("/events") if e["code"] == "clock_differs"), None))


def test_a_machine_whose_clock_differs_is_told_of(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = base.machine_now
    with monkeypatch.context() as wrong:
        wrong.setattr(base, "machine_now", lambda: true() - timedelta(minutes=5))
        live = LiveCoordinator(tmp_path, url)
        try:
            assert abs(live.app.state.replays.now() - true().timestamp()) < 5, "signatures go by it, too"
            assert "300 s behind the database's" in told(live)["message"]
            assert abs(utcnow() - true()) < timedelta(seconds=5)
            wrong.undo()
            assert wait_for(lambda: told(live)["level"] == "info"), "it was set"
            live.app.state.replays._began += 300
            assert wait_for(lambda: abs(live.app.state.replays.now() - true().timestamp()) < 6), (
                "and where the database's was, signatures follow"
            )
        finally:
            live.stop()
            Database(url).agree_on_time()
