"""What the harness does to object storage does happen; and a run comes through it to the bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedcybgd.coordinator.storage import StorageAway, reach
from tests.faults.chaos import started
from tests.faults.judged import disturbed
from tests.faults.plan import FAULTS_OF_THE_STORAGE, OF_THE_STORAGE, STORAGE, Fault, Plan, draw_for_several, with_storage
from tests.faults.proxy import FOREIGN, Rule
from tests.faults.storage import Storage, in_folder
from tests.support import buckets

needs_s3 = pytest.mark.skipif(not buckets.S3, reason="S3_PROGRAMS names no S3 server (make s3)")
DIGEST = "ab" * 32


def test_a_seed_says_what_happens_to_the_storage() -> None:
    for seed in range(50):
        before, plan = draw_for_several(seed), with_storage(draw_for_several(seed))
        assert plan == with_storage(before)
        more = [fault for fault in plan.faults if fault not in before.faults]
        assert len(more) == FAULTS_OF_THE_STORAGE
        assert {fault.kind for fault in more} <= set(OF_THE_STORAGE)
        assert {fault.amount for fault in more if fault.kind == "foreign"} <= set(FOREIGN), "the proxy knows what to answer"


def test_blobs_are_read_and_spoilt_where_they_lie(tmp_path: Path) -> None:
    kept = in_folder(tmp_path / "blobs")
    kept.write(DIGEST, b"bytes")
    assert (tmp_path / "blobs" / "ab" / DIGEST).read_bytes() == kept.read(DIGEST) == b"bytes"
    kept.delete(DIGEST)
    kept.delete(DIGEST)
    with pytest.raises(FileNotFoundError):
        kept.read(DIGEST)


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    storage = Storage()
    yield storage
    storage.stop()


@needs_s3
def test_an_s3_server_that_is_killed_is_away_and_comes_back(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)
    url, kept = storage.new_place()
    bucket = reach(url)
    bucket.put(f"blobs/ab/{DIGEST}", b"bytes")
    assert kept.read(DIGEST) == b"bytes"
    with storage.server.killed(), pytest.raises(StorageAway):
        bucket.read(f"blobs/ab/{DIGEST}")
    assert bucket.read(f"blobs/ab/{DIGEST}") == b"bytes"
    busy = storage.proxy.set(Rule("foreign", amount=503, requests=2))
    assert bucket.read(f"blobs/ab/{DIGEST}") == b"bytes"
    assert busy.met == 2


@needs_s3
@pytest.mark.timeout(600)
def test_a_run_whose_blobs_are_in_s3_comes_through_its_faults(storage: Storage) -> None:
    faults = (Fault(1.0, "kill storage", STORAGE, 1.0), Fault(2.0, "foreign", STORAGE, 1.0, 503))
    with started(agents=2, storage=storage) as fleet:
        outcome = disturbed(fleet, Plan(100, "short", False, faults))
        assert outcome.well, outcome
        assert outcome.identical
        assert len(outcome.faults) == 2
