"""Superseded shards and applied deltas are deleted in the end; nothing that is needed ever is, nor what was needed a moment ago."""

import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Block, EncodedShard, Job, Model, Patch, Run
from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.engine.entries import run as work
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.services import outcomes
from fedcybgd.coordinator.services.operate import models
from fedcybgd.coordinator.services.records import job_leases, jobs
from fedcybgd.coordinator.services.upkeep import garbage
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import BlobStore, open_store
from fedcybgd.coordinator.sweeper import tidy
from tests.support.live import LiveCoordinator
from tests.support.migrated import begin_with_schema
from tests.support.visits import Hand, fresh, start_run

KEEP = timedelta(seconds=3600)
MOMENT = timedelta(seconds=1)


@pytest.mark.database_decides
def test_what_nothing_needs_is_kept_for_its_grace_from_then_on(live: LiveCoordinator, bert: Path) -> None:
    """With no history kept; what one keeps is in test_needed."""
    name, settings = fresh("garbage"), live.settings.model_copy(update={"keep_versions": 0})
    live.add_model(name, bert)
    agent = Hand(live)
    run = start_run(live, name, [agent], seed=77)  # a head that no other test has
    first = agent.take(run)
    before = {b.block: b.digest for b in first.manifest.blocks}
    os.utime(live.store.path(before["head"]), (1, 1))  # written long ago
    now = utcnow()
    tidy(settings, live.database, live.store, now + 5 * KEEP)
    delta = agent.deliver(first).digest
    second = agent.take(run)
    after = {b.block: b.digest for b in second.manifest.blocks}
    assert after["head"] != before["head"]

    superseded = now + 6 * KEEP
    for later in (timedelta(), KEEP / 2, KEEP - MOMENT):
        tidy(settings, live.database, live.store, superseded + later)
        assert live.store.has(before["head"]), "it was needed until a moment ago"
        assert live.store.has(delta)
    tidy(settings, live.database, live.store, superseded + KEEP)
    assert not live.store.has(before["head"])
    assert not live.store.has(delta)
    assert live.store.has(before["layers.0"])  # superseded in the run, but the model's own
    assert all(live.store.has(digest) for digest in after.values())
    assert all(live.store.has(f.digest) for f in second.manifest.files)
    live.operator.post(f"/runs/{run}/cancel")


def test_the_step_to_a_version_that_nobody_has_packed_is_not_forgotten(live: LiveCoordinator, bert: Path) -> None:
    name, settings = fresh("garbage"), live.settings.model_copy(update={"keep_versions": 0})
    live.add_model(name, bert)
    agent = Hand(live)
    run = start_run(live, name, [agent], seed=78, compression={"policy": "int8"})
    first = agent.take(run)
    delta = agent.deliver(first).digest
    agent.take(run)
    with live.database.transaction() as session:
        this = (Run.id == Block.run_id) & (Run.name == run)
        present = session.scalars(select(Block.digest).join(Run, this).where(Block.name == first.block)).one()
        assert session.get(EncodedShard, (present, "exact")) is None, "nobody has asked for it packed"
        session.execute(delete(Patch).where(Patch.target == present))  # whatever the sizes are of so small a block
        session.add(Patch(target=present, base="a" * 64, kind="delta", digest=delta, size=1, weight=1.0))
        steps = [(present, "b", 2), ("a", "b", 1), ("a", "c", 2), ("b", "c", 1), ("c", "d", 1), ("d", "e", 1)]
        for target, base, over in steps:
            ends = {"target": target if target == present else target * 64, "base": base * 64}
            session.add(Patch(**ends, kind="difference", digest=(target[:1] + base) * 32, size=over, weight=1.0))
    now = utcnow()
    for later in (KEEP, 3 * KEEP):
        tidy(settings, live.database, live.store, now + later)
    with live.database.reading() as session:
        found = session.execute(select(Patch.target, Patch.base).where(Patch.base.in_([letter * 64 for letter in "abcde"]))).all()
        kept = {(target if target == present else target[0], base[0]) for target, base in found}
        # Over several versions only to the present one; and no further back than so many steps lead.
        assert kept == {(present, "a"), (present, "b"), ("a", "b"), ("b", "c"), ("c", "d")}
    assert live.store.has(delta), "who trained it goes on from its own delta"
    live.operator.post(f"/runs/{run}/cancel")


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    begin_with_schema(settings.url)
    database = Database(settings.url)
    yield database
    database.close()


@pytest.fixture
def store(settings: Settings) -> BlobStore:
    settings.home.mkdir()
    settings.blobs.mkdir()
    return open_store(settings.blobs)


@pytest.fixture
def tidied(settings: Settings, database: Database, store: BlobStore) -> Callable[[datetime], None]:
    return lambda now: tidy(settings, database, store, now)


@pytest.mark.database_decides
def test_a_job_longer_than_the_grace_loses_nothing(
    database: Database, store: BlobStore, settings: Settings, tidied: Callable[[datetime], None], bert: Path
) -> None:
    """An import from a slow disk, or on a machine that slept: what it has written is named nowhere before its end."""
    now = utcnow()
    with database.transaction() as session:
        models.add(session, "slow", str(bert), now)
    with database.transaction() as session:
        job = jobs.take(session, "slow", "rep_first", now)
        assert job is not None
        assert job.kind == JobKind.IMPORT
        payload = job.payload
    result = work(JobKind.IMPORT, payload, open_store(settings.blobs))
    written = dict(store.stored())
    assert len(written) > 5
    for hours in range(4):
        tidied(now + hours * KEEP)
        assert dict(store.stored()) == written
    with database.transaction() as session:
        job_leases.give_back(session, ["rep_first"])  # the coordinator was started again: the job is going to be done once more
    tidied(now + 5 * KEEP)
    assert dict(store.stored()) == written
    with database.transaction() as session:
        again = jobs.take(session, "slow", "rep_second", now)
        assert again is not None
        hold = job_leases.hold_of(again)
    with database.transaction() as session:
        outcomes.complete(session, hold, result, now)
    tidied(now + 9 * KEEP)
    with database.reading() as session:
        model = session.scalars(select(Model)).one()
        assert model.state == "ready"
        assert all(store.has(digest) for digest in [*(f.digest for f in model.files), *(b.digest for b in model.blocks)])


def test_what_a_failed_job_has_written_goes_after_all(
    database: Database, store: BlobStore, settings: Settings, tidied: Callable[[datetime], None], bert: Path
) -> None:
    now = utcnow()
    with database.transaction() as session:
        models.add(session, "gone", str(bert), now)
    with database.transaction() as session:
        job = jobs.take(session, "slow", "rep_first", now)
        assert job is not None
        hold, payload = job_leases.hold_of(job), job.payload
    work(JobKind.IMPORT, payload, open_store(settings.blobs))
    tidied(now)
    with database.transaction() as session:
        outcomes.fail(session, hold, "worker_died", "killed", now)
        assert session.get_one(Job, hold.job).state == "failed"
    tidied(now + KEEP)
    assert dict(store.stored()) == {}


def test_what_is_written_again_is_young_again(database: Database, store: BlobStore, tidied: Callable[[datetime], None]) -> None:
    """Between two looks: a job that began later may have written the same bytes, or a delta has come a second time."""
    now = utcnow()
    digest, _ = write_blob(store, b"the same bytes")
    tidied(now)
    store.touch(digest)
    tidied(now + KEEP)
    assert store.has(digest)
    tidied(now + 2 * KEEP - MOMENT)
    assert store.has(digest)
    tidied(now + 2 * KEEP)
    assert not store.has(digest)


def test_what_is_written_again_at_the_last_moment_stays(store: BlobStore) -> None:
    digest, _ = write_blob(store, b"x")
    due = dict(store.stored())
    os.utime(store.path(digest), (1, 1))
    assert garbage.collect(store, due) == 0
    assert store.path(digest).read_bytes() == b"x"
    assert garbage.collect(store, dict(store.stored())) == 1
    assert not store.has(digest)


def test_a_writer_and_the_collector_at_once_lose_nothing(store: BlobStore) -> None:
    """Whoever has written a blob finds it there, however the collector falls in between."""
    stop = threading.Event()

    def collecting() -> None:
        while not stop.is_set():
            garbage.collect(store, {digest: written - 1 for digest, written in store.stored()})

    thread = threading.Thread(target=collecting)
    thread.start()
    try:
        for number in range(300):
            digest, _ = write_blob(store, bytes([number % 3]))
            # Taken away for a moment, and put back.
            assert any(store.has(digest) for _ in range(10_000))
    finally:
        stop.set()
        thread.join()
    assert len(list(store.stored())) == 3


def test_nothing_is_deleted_while_a_backup_holds_the_store(
    store: BlobStore, tidied: Callable[[datetime], None], settings: Settings
) -> None:
    now = utcnow()
    digest, _ = write_blob(store, b"x")
    tidied(now)
    with open_store(settings.blobs).hold():
        tidied(now + 2 * KEEP)
        for path in (settings.blobs / "incoming").iterdir():
            os.utime(path, (1, 1))
        tidied(now + 2 * KEEP)
        assert store.has(digest)
    tidied(now + 2 * KEEP)
    assert not store.has(digest)
