"""One class of promises, run over every implementation of `Jobs`, on both databases."""

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Event, Job, Model
from fedcybgd.coordinator.domain.jobs.lease import LEASE, Hold
from fedcybgd.coordinator.jobs import lane, local
from fedcybgd.coordinator.jobs.base import Jobs
from fedcybgd.coordinator.jobs.local import LocalJobs
from fedcybgd.coordinator.jobs.ray_engine import RayEngine
from fedcybgd.coordinator.services import outcomes
from fedcybgd.coordinator.services.operate import models
from fedcybgd.coordinator.services.read.working import running_jobs
from fedcybgd.coordinator.services.records import job_leases, jobs, replicas
from fedcybgd.coordinator.services.upkeep import leases
from tests.support.played import IMPORTED, Held, MortalEngine, PlayedCluster, PlayedEngine
from tests.support.processes import wait_for

pytestmark = pytest.mark.database_decides


def on_ray(database: Database, new_engine: Callable[[], PlayedEngine], owner: str) -> Jobs:
    return LocalJobs(database, lambda: RayEngine(PlayedCluster(new_engine())), owner, print)


IMPLEMENTATIONS: dict[str, Callable[[Database, Any, str], Jobs]] = {
    "local": lambda database, new_engine, owner: LocalJobs(database, new_engine, owner, print), "ray": on_ray,
}  # fmt: skip
Owner = Callable[..., Jobs]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "LOOK_EVERY_S", 0.2)


@pytest.fixture(params=IMPLEMENTATIONS)
def owner(request: pytest.FixtureRequest, database: Database) -> Iterator[Owner]:
    """Starts an owner of jobs on the database of this test, with an engine that plays as told."""
    started: list[Jobs] = []

    def start(name: str, play: Any = lambda *_: IMPORTED, engine: Callable[[Any], PlayedEngine] = PlayedEngine) -> Jobs:
        made = IMPLEMENTATIONS[request.param](database, lambda: engine(play), name)
        made.start()
        started.append(made)
        return made

    yield start
    for made in started:
        made.stop()


def submit(database: Database, name: str = "minilm") -> str:
    """The id of a job in the slow lane, with nobody woken."""
    with database.transaction() as session:
        models.add(session, name, "somewhere", utcnow())
    with database.reading() as session:
        return session.scalars(select(Job.id).order_by(Job.created_at.desc()).limit(1)).one()


def job(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return session.get_one(Job, job_id)


def is_done(database: Database, job_id: str) -> bool:
    return job(database, job_id).state == "done"


def sweep(database: Database, later: timedelta = timedelta()) -> None:
    with database.transaction() as session:
        job_leases.lapse(session, utcnow() + later)


class TestJobs:
    def test_a_job_is_done_when_its_lane_is_woken(self, database: Database, owner: Owner) -> None:
        lanes = owner("rep_a")
        job_id = submit(database)
        lanes.wake({"slow"})
        wait_for(lambda: is_done(database, job_id), limit=local.RENEW_EVERY_S)
        done = job(database, job_id)
        assert (done.owner, done.tries, done.result) == ("rep_a", 1, IMPORTED)

    def test_as_many_jobs_of_a_lane_are_done_at_once_as_there_are_engines(self, database: Database) -> None:
        slow = Held()
        lanes = LocalJobs(database, lambda: PlayedEngine(slow), "rep_a", print, engines=2)
        jobs_ = [submit(database, name) for name in ("one", "two", "three")]
        lanes.start()
        wait_for(lambda: slow.times == 2, limit=10)
        assert sorted(job(database, each).state for each in jobs_) == ["queued", "running", "running"]
        slow.go_on.set()
        wait_for(lambda: all(is_done(database, each) for each in jobs_), limit=15)
        assert [job(database, each).tries for each in jobs_] == [1, 1, 1]
        lanes.stop()

    def test_what_somebody_wrote_who_died_before_he_woke_anybody_is_found(self, database: Database, owner: Owner) -> None:
        owner("rep_a")
        first = submit(database)
        wait_for(lambda: is_done(database, first), limit=15)
        job_id = submit(database, "another")
        wait_for(lambda: is_done(database, job_id), limit=15)

    def test_a_lease_is_renewed_for_as_long_as_the_job_takes(
        self, database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "RENEW_EVERY_S", 0.05)
        slow = Held()
        job_id = submit(database)
        owner("rep_a", slow)
        assert slow.began.wait(10)
        first = job(database, job_id).lease_expires_at
        assert first is not None
        wait_for(lambda: (job(database, job_id).lease_expires_at or first) > first + timedelta(seconds=0.3), limit=10)
        sweep(database, LEASE - timedelta(seconds=1))
        assert job(database, job_id).state == "running"
        slow.go_on.set()
        wait_for(lambda: is_done(database, job_id))
        assert job(database, job_id).tries == 1

    def test_of_two_owners_one_does_it_and_the_other_stands_in_when_it_is_gone(self, database: Database, owner: Owner) -> None:
        lost, heir = Held(), Held()
        heir.go_on.set()
        job_id = submit(database)
        owner("rep_a", lost)
        assert lost.began.wait(10)
        owner("rep_b", heir).wake({"slow"})
        sweep(database)
        assert job(database, job_id).owner == "rep_a", "it lives"
        sweep(database, LEASE + timedelta(seconds=1))  # it has not renewed for so long
        wait_for(lambda: is_done(database, job_id), limit=15)
        done = job(database, job_id)
        assert (done.owner, done.tries, heir.times) == ("rep_b", 2, 1)
        with database.reading() as session:
            assert [e.code for e in session.scalars(select(Event)) if e.code == "job_lapsed"] == ["job_lapsed"]

    @pytest.mark.parametrize("error", [None, ZeroDivisionError("nobody thought of this")])
    def test_what_a_lost_owner_made_of_it_is_nothing(self, database: Database, owner: Owner, error: Exception | None) -> None:
        lost, heir = Held(), Held()
        lost.error = error
        job_id = submit(database)
        owner("rep_a", lost)
        assert lost.began.wait(10)
        sweep(database, LEASE + timedelta(seconds=1))
        owner("rep_b", heir)
        assert heir.began.wait(15)
        lost.go_on.set()
        other = submit(database, "another")  # which the first one takes when it has written what came of the one it lost
        wait_for(lambda: job(database, other).state != "queued", limit=15)
        late = job(database, job_id)
        assert (late.state, late.owner, late.tries, late.error) == ("running", "rep_b", 2, None)
        heir.go_on.set()
        wait_for(lambda: is_done(database, job_id))
        with database.reading() as session:
            assert session.scalars(select(Model.state).where(Model.name == "minilm")).one() == "ready"

    def test_an_engine_that_stands_still_is_seen_to(self, database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local, "RENEW_EVERY_S", 0.05)
        engines: list[PlayedEngine] = []

        def engine(play: Any) -> PlayedEngine:
            engines.append(PlayedEngine(play))
            return engines[-1]

        slow = Held()
        job_id = submit(database)
        owner("rep_a", slow, engine)
        assert slow.began.wait(10)
        for made in engines:
            made.used = 1.5
        wait_for(lambda: job(database, job_id).cpu_s == 1.5)
        still = job(database, job_id)
        assert still.moved_at is not None
        assert still.lease_expires_at is not None
        wait_for(
            lambda: (job(database, job_id).lease_expires_at or utcnow()) > (still.lease_expires_at or utcnow()) + timedelta(seconds=0.2)
        )
        assert job(database, job_id).moved_at == still.moved_at, "its owner lives, its engine does nothing"
        with database.reading() as session:
            (seen,) = running_jobs(session, still.moved_at + timedelta(seconds=100))
        assert (seen.kind, seen.of, seen.owner, seen.tries, seen.cpu_s, seen.still_s) == ("import", "minilm", "rep_a", 1, 1.5, 100)
        assert seen.seconds >= 100
        slow.go_on.set()

    def test_an_engine_that_hangs_is_ended_and_its_job_begun_again(
        self, database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "RENEW_EVERY_S", 0.05)
        monkeypatch.setattr(lane, "HUNG_S", 0.5)
        made: list[PlayedEngine] = []
        hanging = Held()

        def play(kind: str, payload: Any) -> Any:
            return hanging(kind, payload) if len(made) < 4 else IMPORTED  # two lanes have an engine each

        def engine(_: Any) -> PlayedEngine:
            made.append(MortalEngine(play))
            return made[-1]

        job_id = submit(database)
        owner("rep_a", None, engine)
        wait_for(lambda: is_done(database, job_id), limit=15)
        ended = job(database, job_id)
        assert (ended.tries, ended.deaths, hanging.times) == (3, 2, 2)
        hanging.go_on.set()

    def test_a_job_under_which_three_engines_hang_has_failed_and_says_so(
        self, database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "RENEW_EVERY_S", 0.05)
        monkeypatch.setattr(lane, "HUNG_S", 0.3)
        hanging = Held()
        job_id = submit(database)
        owner("rep_a", hanging, MortalEngine)
        wait_for(lambda: job(database, job_id).state == "failed", limit=15)
        failed = job(database, job_id)
        assert (failed.error_code, hanging.times) == ("worker_hung", 3)
        assert "did nothing" in (failed.error or "")
        hanging.go_on.set()

    @pytest.mark.parametrize(
        ("error", "tries", "ends"),
        [
            (MemoryError(), 2, ("done", None)),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 3, ("failed", "engine_exhausted")),
            (RuntimeError("can't start new thread"), 3, ("failed", "engine_exhausted")),
            (OSError(errno.EMFILE, "Too many open files"), 3, ("failed", "engine_exhausted")),
            (RuntimeError("shapes do not match"), 1, ("failed", "engine_failed")),
        ],
    )
    def test_a_job_for_which_there_is_no_memory_is_tried_three_times_with_a_new_engine_each(
        self, database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int, ends: tuple[str, str | None]
    ) -> None:
        monkeypatch.setattr(lane, "SHORT_S", 0.01)
        engines: list[PlayedEngine] = []
        asked: list[int] = []

        def play(*_: Any) -> Any:
            asked.append(len(engines))
            if len(asked) == tries and ends[0] == "done":
                return IMPORTED
            raise error

        def engine(_: Any) -> PlayedEngine:
            engines.append(PlayedEngine(play))
            return engines[-1]

        job_id = submit(database)
        owner("rep_a", None, engine)
        wait_for(lambda: job(database, job_id).state in ("done", "failed"), limit=15)
        ended = job(database, job_id)
        assert (ended.state, ended.error_code) == ends
        assert len(asked) == tries
        if tries > 1:
            assert len(set(asked[1:])) == tries - 1, "each has an engine of its own"

    def test_coordinators_that_stop_or_die_are_not_held_against_a_job(self, database: Database) -> None:
        """Two orderly stops and two deaths of its owner, then two of its engine: it is still begun again."""
        job_id = submit(database)

        def begin(owner_id: str) -> Hold:
            with database.transaction() as session:
                taken = jobs.take(session, "slow", owner_id, utcnow())
                assert taken is not None
                return job_leases.hold_of(taken)

        for number in range(4):
            with database.transaction() as session:
                replica = replicas.enter(session, "hom_one", utcnow())
            begin(replica)
            if number % 2:
                with database.transaction() as session:
                    replicas.leave(session, replica)
            else:
                sweep(database, LEASE + timedelta(seconds=1))
        for died in (1, 2, 3):
            hold = begin("rep_last")
            with database.transaction() as session:
                outcomes.fail(session, hold, "worker_died", "killed", utcnow(), engine_died=True)
            found = job(database, job_id)
            assert (found.state, found.tries) == ("queued" if died < 3 else "failed", 4 + died)
        with database.reading() as session:
            told = session.execute(select(Event.level, Event.message).where(Event.code == "worker_died").order_by(Event.id)).all()
        assert [level for level, _ in told] == ["warning", "warning", "error"]
        assert [f"is begun again, after try {number} of 3: killed" in text for number, (_, text) in enumerate(told[:2], 1)] == [True, True]

    def test_who_slept_while_nobody_was_there_keeps_what_he_had(self, database: Database) -> None:
        job_id = submit(database)
        with database.transaction() as session:
            assert jobs.take(session, "slow", "rep_a", utcnow() - timedelta(hours=1))
            leases.after_absence(session, utcnow(), timedelta(hours=1))
        sweep(database)
        assert (job(database, job_id).state, job(database, job_id).owner) == ("running", "rep_a")

    def test_what_was_under_way_is_anybodys_when_its_owner_stops_or_starts_anew(self, database: Database, owner: Owner) -> None:
        slow = Held()
        with database.transaction() as session:
            first = replicas.enter(session, "hom_one", utcnow())
            other = replicas.enter(session, "hom_other", utcnow())
        job_id = submit(database)
        owner(first, slow)
        assert slow.began.wait(10)
        with database.transaction() as session:
            replicas.leave(session, other)
        assert job(database, job_id).state == "running", "it is not the other's"
        with database.transaction() as session:
            replicas.enter(session, "hom_one", utcnow())
        again = job(database, job_id)
        assert (again.state, again.owner, again.tries) == ("queued", None, 1)
        slow.go_on.set()


OWNER = """
import sys, threading
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.jobs.local import LocalJobs
from tests.support.played import PlayedEngine

def play(kind, payload):
    print("began", flush=True)
    threading.Event().wait()

LocalJobs(Database(sys.argv[1]), lambda: PlayedEngine(play), "rep_killed", print).start()
threading.Event().wait()
"""


def test_a_killed_process_leaves_its_job_to_the_living(database: Database) -> None:
    """Without a restart, and once."""
    done = Held()
    done.go_on.set()
    job_id = submit(database)
    with subprocess.Popen([sys.executable, "-c", OWNER, database.url], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "began\n"
        living = LocalJobs(database, lambda: PlayedEngine(done), "rep_living", print)
        living.start()
        killed.kill()
    assert job(database, job_id).owner == "rep_killed"
    sweep(database, LEASE + timedelta(seconds=1))
    wait_for(lambda: is_done(database, job_id), limit=15)
    assert (job(database, job_id).owner, job(database, job_id).tries, done.times) == ("rep_living", 2, 1)
    living.stop()
