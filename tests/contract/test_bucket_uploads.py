"""What uploads in object storage promise beside the contract: nobody holds them from beyond his death, and no object is left over."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError
from sqlalchemy import update

from fedcybgd.coordinator import bucket_uploads
from fedcybgd.coordinator.bucket_uploads import FOLDER
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import StoredUpload, UploadPiece
from fedcybgd.coordinator.services.records import arrivals
from fedcybgd.coordinator.storage import StorageAway
from fedcybgd.coordinator.storage.uploads import BeingChecked, NothingArrived, UploadKey
from fedcybgd.shared.contract.digests import digest_of
from tests.contract.test_uploads import arrived, finish, granted
from tests.support import buckets
from tests.support.bucket_uploads import ObjectBacking

DATA = bytes(range(256)) * 100
DIGEST = digest_of(DATA)
KEY = UploadKey("asg_1", "agt_1", DIGEST)


@pytest.fixture(params=buckets.KINDS)
def backing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectBacking]:
    with closing(ObjectBacking(request.param, f"sqlite:///{tmp_path / 'coordinator.db'}", tmp_path, monkeypatch)) as backing:
        yield backing


def test_what_whoever_died_was_checking_is_anybodys_soon(backing: ObjectBacking) -> None:
    uploads, store = backing.open()
    uploads.append(KEY, 0, DATA, granted)
    with uploads.take(KEY) as taken:
        with backing.database.transaction() as session:
            session.execute(update(StoredUpload).values(checked_until=utcnow() - timedelta(seconds=1)))
        with backing.open()[0].take(KEY) as by_another:
            with pytest.raises(NothingArrived):
                taken.keep()
            taken.drop()
            with by_another.open() as file:
                assert file.read() == DATA, "it was not his to drop"
            by_another.keep()
    assert (store.has(DIGEST), uploads.is_kept(KEY), backing.objects()) == (True, True, set())


@pytest.mark.parametrize("by", ["discarded", "taken over"])
def test_what_is_another_ones_by_the_time_that_it_is_a_blob_was_not_kept(
    backing: ObjectBacking, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    uploads, store = backing.open()
    adopt = store.adopt

    def late(path: Path, digest: str) -> None:
        adopt(path, digest)
        if by == "discarded":
            uploads.discard(KEY)
        with backing.database.transaction() as session:
            session.execute(update(StoredUpload).values(checked_by="another"))

    monkeypatch.setattr(store, "adopt", late)
    uploads.append(KEY, 0, DATA, granted)
    with pytest.raises(NothingArrived):
        finish(uploads)
    assert (uploads.is_kept(KEY), len(uploads.keys())) == (False, 0 if by == "discarded" else 1)


def test_nobody_is_taken_for_dead_who_checks_for_long(backing: ObjectBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (arrivals, "CHECKED_FOR", timedelta(seconds=0.5)), (bucket_uploads, "RENEW_EVERY_S", 0.05), (bucket_uploads, "WAIT_S", 1.2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    uploads, _ = backing.open()
    uploads.append(KEY, 0, DATA, granted)
    with uploads.take(KEY) as taken:
        with pytest.raises(BeingChecked):
            finish(backing.open()[0])
        taken.keep()


def test_two_that_send_the_same_at_the_same_time_leave_one_of_each_byte(backing: ObjectBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, other = backing.open()[0], backing.open()[0]
    put, met = obstore.put, list[int]()

    def meet(*given: object, **more: object) -> object:
        if not met:
            met.append(1)
            other.append(KEY, 0, DATA[:3000], granted)
        return put(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(obstore, "put", meet)
    uploads.append(KEY, 0, DATA[:5000], granted)
    assert (met, arrived(uploads), len(backing.objects())) == ([1], DATA[:5000], 2)
    backing.nothing_is_left_over()


def test_an_object_that_no_row_names_is_deleted_and_one_on_its_way_is_not(backing: ObjectBacking) -> None:
    uploads, _ = backing.open()
    uploads.append(KEY, 0, DATA[:10], granted)
    kept = backing.objects()
    with backing.database.transaction() as session:
        arrivals.announce(session, "asg_2/coming", 0, 5, utcnow())
    for name in ("asg_2/coming", "asg_2/nobodys"):
        backing.bucket().put(f"{FOLDER}/{name}", b"bytes")
    uploads.sweep(1000)
    assert backing.objects() == kept | {"asg_2/coming"}
    with backing.database.transaction() as session:
        session.execute(update(UploadPiece).where(UploadPiece.upload_id.is_(None)).values(begun_at=utcnow() - 2 * arrivals.ON_ITS_WAY))
    uploads.sweep(1000)
    assert (backing.objects(), arrived(uploads)) == (kept, DATA[:10])


def test_what_was_swept_while_it_was_sent_is_sent_again(backing: ObjectBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, _ = backing.open()
    put, sent = obstore.put, list[int]()

    def slow(*given: object, **more: object) -> object:
        done = put(*given, **more)  # type: ignore[arg-type]
        sent.append(1)
        if len(sent) == 1:
            with backing.database.transaction() as session:
                arrivals.named(session, utcnow() + 2 * arrivals.ON_ITS_WAY)
        return done

    monkeypatch.setattr(obstore, "put", slow)
    uploads.append(KEY, 0, DATA, granted)
    assert (len(sent), arrived(uploads)) == (2, DATA)


def test_bytes_that_the_storage_has_lost_have_not_arrived(backing: ObjectBacking) -> None:
    uploads, store = backing.open()
    for at in (0, 1000):
        uploads.append(KEY, at, DATA[at : at + 1000], granted)
    backing.bucket().delete([f"{FOLDER}/{max(backing.objects())}"])
    with pytest.raises(NothingArrived):
        finish(uploads)
    assert (uploads.offset(KEY), store.has(DIGEST), backing.objects()) == (0, False, set())


def test_a_storage_that_is_away_keeps_what_arrived_and_is_tidied_later(backing: ObjectBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, _ = backing.open()
    uploads.append(KEY, 0, DATA[:1000], granted)

    def away(*_: object, **__: object) -> None:
        raise GenericError("error sending request for url")

    with monkeypatch.context() as patch:
        for step in ("put", "delete"):
            patch.setattr(obstore, step, away)
        with pytest.raises(StorageAway):
            uploads.append(KEY, 1000, DATA[1000:], granted)
        assert uploads.offset(KEY) == 1000
        uploads.discard(KEY)
        assert len(backing.objects()) == 1
    uploads.sweep(1000)
    assert (backing.objects(), set(uploads.keys())) == (set(), set())
