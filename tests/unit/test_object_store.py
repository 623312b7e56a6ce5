"""What object storage needs besides the contract of stores: copies within bounds, two who meet at one blob, and what is told at the start."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from fedcybgd.coordinator.storage import BlobMissing, Place, StorageAway, StorageUnusable, bucket, label, open_overlay, open_place
from fedcybgd.coordinator.storage import object as objects
from fedcybgd.coordinator.storage.bucket import Bucket, Found, reach
from fedcybgd.coordinator.storage.cache import BlobCache
from fedcybgd.coordinator.storage.object import ObjectBlobStore
from tests.contract.test_blob_store import DATA, DIGEST, put, read
from tests.support.processes import wait_for


@pytest.fixture
def shared() -> Bucket:
    return Bucket(MemoryStore(), "memory")


@pytest.fixture
def store(shared: Bucket, tmp_path: Path) -> ObjectBlobStore:
    return ObjectBlobStore(shared, BlobCache(tmp_path / "disk", 10_000))


def copies(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("??/*")}


class TestCopies:
    def test_who_was_used_longest_ago_goes_first(self, store: ObjectBlobStore, tmp_path: Path) -> None:
        one, other = (put(store, bytes([n]) * 4000) for n in range(2))
        for digest, used in ((one, 2000), (other, 1000)):
            os.utime(tmp_path / "disk" / digest[:2] / digest, (used, used))
        assert read(store, other) == bytes([1]) * 4000  # it is used again, after the first
        third = put(store, bytes([3]) * 4000)
        assert copies(tmp_path / "disk") == {other, third}
        assert read(store, one) == bytes([0]) * 4000, "what has no copy any more is fetched"

    def test_what_is_being_read_stays_though_there_is_no_room(self, store: ObjectBlobStore, tmp_path: Path) -> None:
        one = put(store, bytes(8000))
        with store.localised(one) as path:
            put(store, bytes([1]) * 8000)
            assert path.read_bytes() == bytes(8000)
        put(store, bytes([2]) * 8000)
        assert not path.exists()

    def test_one_that_is_larger_than_all_room_is_had_all_the_same(self, store: ObjectBlobStore) -> None:
        with store.localised(put(store)) as path:
            assert path.read_bytes() == DATA

    def test_a_damaged_copy_is_fetched_again(self, store: ObjectBlobStore, tmp_path: Path) -> None:
        put(store)
        (tmp_path / "disk" / DIGEST[:2] / DIGEST).write_bytes(b"?" + DATA[1:])
        with store.localised(DIGEST) as path:
            assert path.read_bytes() == DATA

    def test_a_blob_is_fetched_once_by_all_who_want_it(
        self, store: ObjectBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(store)
        fresh, fetched = ObjectBlobStore(store.bucket, BlobCache(tmp_path / "other", 1 << 30)), list[str]()
        chunks, looked, lacked = Bucket.chunks, BlobCache._hold, list[str]()

        def lacking(self: BlobCache, digest: str) -> int | None:
            held = looked(self, digest)
            if held is None:
                lacked.append(digest)
            return held

        def counted(self: Bucket, name: str) -> Iterator[memoryview]:
            fetched.append(name)
            wait_for(lambda: len(lacked) == 4)
            return chunks(self, name)

        monkeypatch.setattr(BlobCache, "_hold", lacking)
        monkeypatch.setattr(Bucket, "chunks", counted)
        threads = [threading.Thread(target=read, args=(fresh,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(fetched) == 1


class TestDeletion:
    """Whoever writes a blob that somebody is about to delete has it there in the end, whichever of them is first."""

    @pytest.fixture(autouse=True)
    def _hastily(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(objects, "LOOK_EVERY_S", 0.01)

    def test_it_is_written_again_before_its_marks_are_looked_at(self, store: ObjectBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        put(store)
        written = dict(store.stored())[DIGEST]
        self.meanwhile(store, monkeypatch, "list", f"{objects.TOUCHED}/{DIGEST}")
        assert store.delete(DIGEST, written) is False
        self.other.join()
        assert (store.has(DIGEST), self.done) == (True, [DIGEST])

    def test_it_is_written_again_after_they_were_looked_at(self, store: ObjectBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        put(store)
        written = dict(store.stored())[DIGEST]
        self.meanwhile(store, monkeypatch, "delete", f"blobs/{DIGEST[:2]}/{DIGEST}")
        assert store.delete(DIGEST, written) is True
        self.other.join()
        assert (store.has(DIGEST), self.done) == (True, [DIGEST])
        assert dict(store.stored())[DIGEST] != written

    def meanwhile(self, store: ObjectBlobStore, monkeypatch: pytest.MonkeyPatch, step: str, name: str) -> None:
        """Have another write the blob again before the deleter's step at that name, as far as it gets."""
        self.done: list[str] = []
        self.other = threading.Thread(target=lambda: self.done.append(put(ObjectBlobStore(store.bucket, store._cache))))
        plain, marked = getattr(Bucket, step), threading.Event()
        deleter = threading.current_thread()

        def say(self_: Bucket, what: str, data: bytes, plain_put=Bucket.put) -> None:  # type: ignore[no-untyped-def]
            plain_put(self_, what, data)
            if what.startswith(objects.TOUCHED):
                marked.set()

        def stepped(bucket_: Bucket, names: object) -> object:
            if threading.current_thread() is deleter and name in (names if isinstance(names, list) else [names]) and not self.other.ident:
                self.other.start()
                assert marked.wait(10)
            return plain(bucket_, names)

        monkeypatch.setattr(Bucket, "put", say)
        monkeypatch.setattr(Bucket, step, stepped)

    def test_one_who_died_of_it_keeps_nobody_from_writing(self, store: ObjectBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(objects, "DELETING_ENDS_S", 0.05)
        store.bucket.put(f"{objects.DELETING}/{DIGEST}/left", b"")
        assert put(store) == DIGEST
        assert list(store.bucket.list(objects.DELETING)) == []

    def test_of_two_who_delete_it_the_slower_one_is_waited_for_too(self, store: ObjectBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        put(store)
        written, plain, others = dict(store.stored())[DIGEST], Bucket.find, list[bool]()

        def found(bucket_: Bucket, name: str) -> Found | None:
            blob = plain(bucket_, name)
            if not others:  # the slower one has seen the blob, and deletes it next
                others.append(True)
                assert store.delete(DIGEST, written) is True
                others.append(bool(list(store.bucket.list(objects.DELETING))))
            return blob

        monkeypatch.setattr(Bucket, "find", found)
        store.delete(DIGEST, written)
        assert others == [True, True], "whoever writes it meanwhile sees that somebody is about to delete it"
        assert list(store.bucket.list(objects.DELETING)) == []

    def test_one_who_took_so_long_that_nobody_waits_any_more_lets_it_be(
        self, store: ObjectBlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(store)
        monkeypatch.setattr(objects, "DELETING_ENDS_S", -1.0)
        assert store.delete(DIGEST, dict(store.stored())[DIGEST]) is False
        assert store.has(DIGEST)

    @pytest.mark.parametrize(("second", "goes"), [(1000.0, True), (1001.0, True), (1002.0, False), (999.0, False)])
    def test_where_one_object_has_a_whole_second_and_a_list_thousandths_they_are_the_same(
        self, store: ObjectBlobStore, monkeypatch: pytest.MonkeyPatch, second: float, goes: bool
    ) -> None:
        """As with MinIO, which cuts them off, and Swift, which rounds up."""
        put(store)
        head, list_all = Bucket.find, Bucket.list

        def found(bucket_: Bucket, name: str) -> Found | None:
            blob = head(bucket_, name)
            return blob and blob._replace(modified=second)

        monkeypatch.setattr(Bucket, "find", found)
        monkeypatch.setattr(Bucket, "list", lambda bucket_, prefix: (one._replace(modified=1000.821) for one in list_all(bucket_, prefix)))
        assert store.delete(DIGEST, dict(store.stored())[DIGEST]) is goes

    def test_a_mark_of_the_same_name_stays(self, store: ObjectBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        put(store)
        monkeypatch.setattr(objects.secrets, "token_hex", lambda count: "0" * 2 * count)
        for _ in range(2):
            store.touch(DIGEST)
            assert len(list(store.bucket.list(objects.TOUCHED))) == 1

    def test_what_went_is_not_touched(self, store: ObjectBlobStore) -> None:
        put(store)
        store.touch(DIGEST)
        store.delete(DIGEST)
        with pytest.raises(BlobMissing):
            store.touch(DIGEST)
        assert list(store.bucket.list(objects.TOUCHED)) == []


def test_a_hold_ends_with_its_process(store: ObjectBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.bucket.put(f"{objects.HOLDS}/left", b"")  # by one that was killed
    assert store.is_held()
    monkeypatch.setattr(objects, "HOLD_ENDS_S", -1.0)
    assert not store.is_held()
    store.sweep()
    assert list(store.bucket.list(objects.HOLDS)) == []


def test_what_is_made_over_a_storage_lies_aside(tmp_path: Path) -> None:
    place = Place(tmp_path / "disk", f"file://{tmp_path / 'bucket'}", cache_bytes=1 << 30)
    below = open_place(place)
    put(below)
    over = open_overlay(tmp_path / "aside", place)
    made = put(over, b"made of it")
    for digest, data in ((DIGEST, DATA), (made, b"made of it")):
        over.check(digest)
        with over.localised(digest) as path:
            assert path.read_bytes() == data
        assert (over.has(digest), over.size(digest), read(over, digest)) == (True, len(data), data)
    assert not below.has(made)


class TestStart:
    @pytest.mark.parametrize("url", ["bucket/prefix", "http://bucket", "s4://bucket", ""])
    def test_what_is_no_address_is_named(self, url: str) -> None:
        with pytest.raises(StorageUnusable, match="s3://bucket/prefix"):
            reach(url)

    @pytest.mark.parametrize(
        ("links", "begins"),
        [
            (None, "https://inner.example/bucket/prefix/blob?"),
            ("https://outer.example", "https://outer.example/bucket/prefix/blob?"),
            ("off", "None"),
        ],
    )
    def test_links_name_the_endpoint_that_agents_reach(self, monkeypatch: pytest.MonkeyPatch, links: str | None, begins: str) -> None:
        for name, value in (
            ("ENDPOINT_URL", "https://inner.example"),
            ("ACCESS_KEY_ID", "me"),
            ("SECRET_ACCESS_KEY", "secret"),
            ("REGION", "r"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        link = str(reach("s3://bucket/prefix", links).link("blob", 60))
        assert link.startswith(begins)
        assert ("X-Amz-Expires=60" in link) == (links != "off")

    @pytest.mark.parametrize("url", ["s3://AKIAKEY:hidden@bucket/x", "s3://hidden@bucket", "s3://bucket/x?sig=hidden"])
    def test_keys_in_an_address_are_refused_and_not_said_again(self, url: str) -> None:
        with pytest.raises(StorageUnusable, match="AWS_ACCESS_KEY_ID") as refused:
            bucket.reach(url)
        assert "hidden" not in refused.value.message

    @pytest.mark.parametrize("links", ["", "true", "OFF", "minio.example", "https://"])
    def test_links_that_are_no_address_are_named(self, links: str) -> None:
        with pytest.raises(StorageUnusable, match="FEDCOORD_STORAGE_LINKS"):
            reach("s3://bucket/prefix", links)

    def test_a_disk_that_takes_no_copies_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_text("a file")
        with pytest.raises(StorageUnusable, match=r"disk.*cannot be written: .*FEDCOORD_HOME"):
            open_place(Place(tmp_path / "disk", f"file://{tmp_path / 'bucket'}"))

    def test_a_library_that_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "obstore", None)
        with pytest.raises(StorageUnusable, match=r"pip install '\.\[s3\]'"):
            reach("s3://bucket")

    def test_who_comes_first_writes_the_label(self, tmp_path: Path) -> None:
        url = f"file://{tmp_path}/bucket"
        assert [label(url, "store.id", text) for text in ("one", "two")] == ["one", "one"]

    @pytest.mark.parametrize("fails", ["put", "get", "delete"])
    def test_what_may_not_be_done_in_it_is_found_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
        def refused(*_: object, **__: object) -> None:
            raise GenericError("AccessDenied\n\nDebug source:\nlong")

        monkeypatch.setattr(obstore, fails, refused)
        with pytest.raises(StorageUnusable, match="AccessDenied; does the bucket exist"):
            label(f"file://{tmp_path}/bucket", "store.id", "one")

    def test_one_that_overwrites_what_is_there_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = obstore.put
        monkeypatch.setattr(obstore, "put", lambda store, name, file, mode=None, **more: plain(store, name, file, **more))
        with pytest.raises(StorageUnusable, match="If-None-Match"):
            label(f"file://{tmp_path}/bucket", "store.id", "one")


def test_a_storage_that_is_away_is_told_and_nothing_is_lost(store: ObjectBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)

    def away(*_: object, **__: object) -> None:
        raise GenericError("error sending request for url")

    for step in (lambda: store.has(DIGEST), lambda: put(store, b"other"), lambda: store.link(DIGEST, 60), lambda: list(store.stored())):
        with monkeypatch.context() as patch:
            for name in ("head", "put", "get", "list"):
                patch.setattr(obstore, name, away)
            with pytest.raises(StorageAway) as said:
                step()
        assert (said.value.code, said.value.status) == ("storage_away", 503)
    assert read(store) == DATA
    assert bucket.RETRIES["max_retries"] > 0
