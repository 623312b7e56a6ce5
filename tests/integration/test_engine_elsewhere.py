"""`fedcoord engine`: jobs that another process does, as coordinators' own lanes do them; and what it refuses to begin with."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from typer.testing import CliRunner

from fedcybgd.coordinator import elsewhere
from fedcybgd.coordinator.cli import app
from fedcybgd.coordinator.common import LABEL, StoreDiffers
from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Job, Replica
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.home import DatabaseUnusable, HomeUnusable, NoCoordinator, SchemaTooOld
from fedcybgd.coordinator.serve import prepare_home
from fedcybgd.coordinator.services.records import instance, replicas
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.files import volumes
from tests.faults.fleet import LONGEST_POINT, environment
from tests.support.live import LiveCoordinator
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for
from tests.support.visits import Hand, finish, run_file, settled, start_run, versions

pytestmark = pytest.mark.database_decides
Engines = Callable[..., subprocess.Popen[bytes]]
DIES = b"web coordinator.jobs.taking:Queue.complete(import) commit before"

PLAYED = """
import os, threading
from dataclasses import replace
from fedcybgd.coordinator import elsewhere
from fedcybgd.coordinator.parts import local
from fedcybgd.coordinator.settings import Settings
from tests.support.played import PlayedEngine

def play(kind, payload):
    print("began", flush=True)
    threading.Event().wait()

elsewhere.work(Settings(), lambda: None, lambda settings, database: replace(local(settings, database), new_engine=lambda: PlayedEngine(play)))
os._exit(0)  # a thread of this test plays on
"""


def variables(live: LiveCoordinator, **more: str) -> dict[str, str]:
    own = {"FEDCOORD_HOME": str(live.settings.home), "FEDCOORD_DATABASE_URL": str(live.settings.database_url)}
    return {**os.environ, "PYTHONUNBUFFERED": "1", **own, **more}


@contextmanager
def begun(live: LiveCoordinator, log: Path, words: list[str], **more: str) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("ab") as file,
        subprocess.Popen(
            [sys.executable, *words],
            stdout=file,
            stderr=file,
            env=variables(live, **more),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests may run in the background, where Ctrl-C is ignored
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def live(coordinators: Callable[..., LiveCoordinator]) -> LiveCoordinator:
    """A coordinator that does no jobs."""
    return coordinators(lanes="none")


def told(live: LiveCoordinator) -> tuple[int, int]:
    status: Any = live.operator.get("/status")
    return status["coordinators"], status["engines"]


def alarms(live: LiveCoordinator) -> list[str]:
    status: Any = live.operator.get("/status")
    return [alarm["code"] for alarm in status["alarms"]]


def jobs(live: LiveCoordinator) -> list[tuple[str, int, str | None]]:
    with live.database.reading() as session:
        return [(job.state, job.tries, job.owner) for job in session.scalars(select(Job).order_by(Job.created_at))]


def add_model(live: LiveCoordinator, folder: Path) -> None:
    live.operator.post("/models", {"name": "bert", "source": str(folder)})


@pytest.mark.timeout(300)  # two processes import torch
def test_jobs_of_a_run_are_done_by_engines_elsewhere_also_when_one_is_killed_at_it(
    live: LiveCoordinator, bert: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    faults, log = tmp_path / "faults", tmp_path / "engine.log"
    faults.mkdir()
    (faults / "seen").touch()
    (faults / "armed").write_bytes(DIES.ljust(LONGEST_POINT, b"\0"))
    command = ["-m", "fedcybgd.coordinator.cli", "engine"]
    with begun(live, log, command, **environment(tmp_path, "killed")) as killed:
        wait_for(lambda: told(live) == (1, 1))
        add_model(live, bert)
        assert killed.wait(120) == -signal.SIGKILL
    ((state, tries, owner),) = jobs(live)
    assert (state, tries) == ("running", 1)
    with begun(live, log, command) as engine:
        wait_for(lambda: jobs(live)[0][0] == "done", limit=120)
        assert jobs(live)[0][1] == 2
        assert jobs(live)[0][2] not in (owner, None)
        hand = Hand(live)
        run = start_run(live, "bert", [hand])
        if (url := live.settings.url).startswith("postgresql"):
            server: PostgresServer = request.getfixturevalue("postgres")
            with server.closed(url):
                wait_for(lambda: "the database is away" in log.read_text())
        finish(live, run, [hand])
        assert settled(live, run)["state"] == "completed"
        assert (versions(live, run)["layers.0"], versions(live, run)["layers.1"]) == (1, 1)
        assert engine.poll() is None
        engine.send_signal(signal.SIGTERM)
        assert engine.wait(30) == 0
    assert "Traceback" not in log.read_text()
    assert told(live)[1] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_given_back_when_it_is_asked_to_stop(live: LiveCoordinator, tmp_path: Path, number: signal.Signals) -> None:
    add_model(live, tmp_path)
    log = tmp_path / "engine.log"
    with begun(live, log, ["-c", PLAYED]) as engine:
        wait_for(lambda: b"began" in log.read_bytes())
        assert [job[:2] for job in jobs(live)] == [("running", 1)]
        engine.send_signal(number)
        assert engine.wait(30) == 0
    assert jobs(live) == [("queued", 1, None)]
    assert told(live) == (1, 0)


def test_a_lane_for_which_nobody_is_there_is_told_of(coordinators: Callable[..., LiveCoordinator], tmp_path: Path) -> None:
    live = coordinators(lanes="quick")
    assert "lane_unattended" not in alarms(live)
    add_model(live, tmp_path)
    assert "lane_unattended" in alarms(live)
    with live.database.transaction() as session:
        replicas.enter_engine(session, utcnow(), ["slow"])
    assert "lane_unattended" not in alarms(live)


def test_a_run_that_waits_for_such_a_lane_says_so(coordinators: Callable[..., LiveCoordinator], bert: Path) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    live.app.state.jobs.stop()
    with live.database.transaction() as session:
        session.get_one(Replica, live.app.state.replica).lanes = ["quick"]
    run: Any = live.operator.post("/runs", run_file("bert", "all"))

    later: list[Any] = [live.operator.post("/runs", run_file("bert", "all")) for _ in range(2)]

    def waits(run: Any = run) -> str:
        found: Any = live.operator.get(f"/runs/{run['id']}/explanation")
        return " ".join(wait["text"] for wait in found["waits"])

    assert "fedcoord engine --lanes slow" in waits()
    with live.database.transaction() as session:
        replicas.enter_engine(session, utcnow(), ["slow"])
    assert "is queued" in waits()
    assert "fedcoord engine" not in waits()
    before = ["0 jobs of its lane are before it", "1 job of its lane is before it", "2 jobs of its lane are before it"]
    assert [words in waits(one) for one, words in zip([run, *later], before, strict=True)] == [True] * 3
    for made, said in [(run, "a job of the engine has failed"), (later[0], "2 jobs of the engine have failed")]:
        with live.database.transaction() as session:
            session.execute(update(Job).where(Job.subject == made["id"]).values(state=JobState.FAILED))
        assert [alarm["message"] for alarm in live.operator.get("/status")["alarms"] if alarm["code"] == "jobs_failed"] == [said]


def test_an_engine_is_no_coordinator(live: LiveCoordinator) -> None:
    """Who served agents meanwhile is asked where leases are looked after, and an engine does not; and each start is another."""
    now = utcnow()
    with live.database.transaction() as session:
        first, second = (replicas.enter_engine(session, now, ["slow"]) for _ in range(2))
        session.flush()
        assert [one.id for one in replicas.alive(session, now)] == [live.app.state.replica]
        assert {one.id for one in replicas.alive(session, now, serving=False)} == {first, second}
        session.execute(text("DELETE FROM replica WHERE id = :id"), {"id": live.app.state.replica})
        assert not replicas.is_another_alive(session, "hom_mine", now)
        session.rollback()
    with live.database.transaction() as session:
        session.add(Replica(id="eng_gone", home="eng_gone", started_at=now, seen_at=now, serves=False, lanes=["slow"]))
        session.flush()
        later = now + replicas.FORGOTTEN + timedelta(minutes=1)
        replicas.beat(session, "eng_new", "eng_new", 0, later, ["quick"], serves=False)
        assert [(one.id, one.lanes) for one in replicas.alive(session, later, serving=False)] == [("eng_new", ["quick"])]
        session.rollback()


# ---- what it does not begin with


def settings_of(tmp_path: Path, url: str, **more: Any) -> Settings:
    return Settings(home=tmp_path / "home", database_url=url, **more)


def refused(settings: Settings) -> pytest.ExceptionInfo[CoordinatorError]:
    with pytest.raises(CoordinatorError) as found:
        elsewhere.opened(settings)
    return found


def test_without_a_coordinator_there_is_nothing_to_do(tmp_path: Path, database_url: str) -> None:
    settings = settings_of(tmp_path, database_url)
    assert refused(settings).type is NoCoordinator
    database = Database(database_url)
    migrate.upgrade(database.engine)
    database.close()
    assert refused(settings).type is NoCoordinator, "it has tables, and nobody who began with it"
    assert not settings.home.exists()


def test_a_schema_of_another_version_is_refused_and_left_alone(tmp_path: Path, database_url: str) -> None:
    settings = settings_of(tmp_path, database_url)
    prepare_home(settings)
    settings.blobs.mkdir(exist_ok=True)
    database = Database(database_url)
    with database.transaction() as session:
        instance.identity(session, utcnow())
    elsewhere.opened(settings).close()
    migrate.downgrade(database.engine, "0037")
    found = refused(settings)
    assert (found.type, "0037" in str(found.value)) == (SchemaTooOld, True)
    assert migrate.current(database.engine) == "0037"
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(DatabaseUnusable, match="newer"):
        elsewhere.work(settings, lambda: None)


@pytest.mark.parametrize("database_url", [pytest.param("postgresql", marks=pytest.mark.postgresql)], indirect=True)
def test_blobs_of_others_and_such_as_cannot_be_written_are_refused(tmp_path: Path, database_url: str) -> None:
    shared = tmp_path / "shared"
    prepare_home(settings_of(tmp_path, database_url, shared=shared))
    empty = tmp_path / "empty"
    empty.mkdir()
    found = refused(settings_of(tmp_path, database_url, shared=empty))
    assert (found.type, "FEDCOORD_SHARED" in str(found.value), list(empty.iterdir())) == (StoreDiffers, True, [])
    (empty / LABEL).write_text((shared / LABEL).read_text().replace("sto_", "sto_f"))
    assert refused(settings_of(tmp_path, database_url, shared=empty)).type is StoreDiffers
    (shared / "blobs").write_text("no directory")
    assert refused(settings_of(tmp_path, database_url, shared=shared)).type is HomeUnusable
    (shared / "blobs").unlink()
    (shared / "blobs").mkdir()
    elsewhere.opened(settings_of(tmp_path, database_url, shared=shared)).close()


@pytest.mark.one_database
def test_object_storage_of_others_is_refused_and_left_alone(tmp_path: Path) -> None:
    theirs, empty = (f"file://{tmp_path / name}" for name in ("theirs", "empty"))
    prepare_home(Settings(home=tmp_path / "home", storage=theirs))
    elsewhere.opened(Settings(home=tmp_path / "home", storage=theirs)).close()
    assert refused(Settings(home=tmp_path / "home", storage=empty)).type is StoreDiffers
    assert refused(Settings(home=tmp_path / "home")).type is HomeUnusable, "they have none in the directory"
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.one_database
def test_an_sqlite_file_on_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path)
    prepare_home(settings)

    class Mounted:
        def __init__(self, mountpoint: Path, fstype: str) -> None:
            self.mountpoint, self.fstype = str(mountpoint), fstype

    monkeypatch.setattr("psutil.disk_partitions", lambda **_: [Mounted(Path("/"), "ext4"), Mounted(tmp_path, "nfs4")])
    with pytest.raises(DatabaseUnusable, match=r"nfs4.*PostgreSQL"):
        elsewhere.opened(settings)
    assert volumes.network_file_system(Path("/etc/hosts")) is None


@pytest.mark.one_database
def test_an_engine_without_a_lane_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCOORD_LANES", "none")
    assert "nothing to do" in str(CliRunner().invoke(app, ["engine"]).exception)
    assert "'--lanes': must be" in CliRunner().invoke(app, ["engine", "--lanes", "fast"]).output


def test_every_engine_of_every_lane_may_have_a_connection(tmp_path: Path) -> None:
    """Else a lane would wait for requests, or they for it."""
    sizes = []
    for name, engines in (("one", 1), ("three", 3)):
        coordinator = LiveCoordinator(tmp_path / name, engines=engines, threads=8)
        sizes.append(coordinator.database.engine.pool.size())  # type: ignore[attr-defined]
        coordinator.stop()
    assert sizes == [18, 22]
