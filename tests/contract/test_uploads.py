"""One class of promises, run over every implementation of `Uploads`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from fedcybgd.coordinator.storage import BlobCorrupt, BlobStore, StoreFull, Uploads, open_store, open_uploads
from fedcybgd.coordinator.storage.uploads import BeingChecked, Elsewhere, NothingArrived, UploadKey
from fedcybgd.shared.contract.digests import digest_of
from tests.support import buckets
from tests.support.bucket_uploads import ObjectBacking
from tests.support.memory_store import Memory, MemoryStore, MemoryUploads

DATA = bytes(range(256)) * 100
DIGEST = digest_of(DATA)
KEY = UploadKey("asg_1", "agt_1", DIGEST)
OTHER = digest_of(b"other")


class Backing(Protocol):
    def open(self) -> tuple[Uploads, BlobStore]:
        """As another process would open them."""
        ...

    def age(self, key: UploadKey, seconds: float) -> None:
        """Nobody has added to this upload for so long."""
        ...

    def full(self, monkeypatch: pytest.MonkeyPatch) -> None: ...


class LocalBacking:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> tuple[Uploads, BlobStore]:
        store = open_store(self._folder / "blobs")
        return open_uploads(self._folder / "uploads", store), store

    def age(self, key: UploadKey, seconds: float) -> None:
        then = time.time() - seconds
        os.utime(self._folder / "uploads" / f"{'-'.join(key)}.part", (then, then))

    def full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_room(*_: Any, **__: Any) -> Any:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr("fedcybgd.coordinator.storage.local_uploads.os.open", no_room)


class MemoryBacking:
    def __init__(self, _folder: Path) -> None:
        self._memory = Memory()

    def open(self) -> tuple[Uploads, BlobStore]:
        return MemoryUploads(self._memory), MemoryStore(self._memory)

    def age(self, key: UploadKey, seconds: float) -> None:
        self._memory.uploads[key] = (self._memory.uploads[key][0], time.time() - seconds)

    def full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self._memory, "full", "write")


OBJECTS = [
    *(f"objects-{kind}" for kind in buckets.KINDS),
    pytest.param("objects-postgresql", marks=[pytest.mark.postgresql, pytest.mark.database_decides]),
]


@pytest.fixture(params=["local", "memory", *OBJECTS])
def backing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backing]:
    if request.param in ("local", "memory"):
        yield {"local": LocalBacking, "memory": MemoryBacking}[request.param](tmp_path)
        return
    kind, url = request.param.removeprefix("objects-"), f"sqlite:///{tmp_path / 'coordinator.db'}"
    if kind == "postgresql":
        kind, url = "memory", request.getfixturevalue("postgres").database_with_schema()
    with closing(ObjectBacking(kind, url, tmp_path, monkeypatch)) as objects:
        yield objects
        objects.nothing_is_left_over()


def granted() -> None:
    """Anybody may write."""


def arrived(uploads: Uploads, key: UploadKey = KEY) -> bytes:
    with uploads.take(key) as taken, taken.open() as file:
        return file.read()


def finish(uploads: Uploads, key: UploadKey = KEY) -> None:
    with uploads.take(key) as taken:
        taken.keep()


class TestUploads:
    def test_an_upload_begins_with_its_first_byte(self, backing: Backing) -> None:
        uploads, _ = backing.open()
        assert (uploads.offset(KEY), set(uploads.keys())) == (0, set())
        with pytest.raises(NothingArrived), uploads.take(KEY):
            pass
        uploads.append(KEY, 0, DATA[:10], granted)
        assert (uploads.offset(KEY), arrived(uploads), set(uploads.keys())) == (10, DATA[:10], {KEY})
        for other in (KEY._replace(place="asg_2"), KEY._replace(owner="agt_2"), KEY._replace(digest=OTHER)):
            assert uploads.offset(other) == 0

    def test_it_goes_on_in_another_process(self, backing: Backing) -> None:
        backing.open()[0].append(KEY, 0, DATA[:1000], granted)
        uploads, store = backing.open()
        assert uploads.offset(KEY) == 1000
        uploads.append(KEY, 1000, DATA[1000:], granted)
        finish(uploads)
        with store.open(DIGEST) as blob:
            assert blob.read() == DATA

    def test_a_repeat_writes_the_same_bytes_to_the_same_place(self, backing: Backing) -> None:
        uploads, _ = backing.open()
        uploads.append(KEY, 0, DATA[:3000], granted)
        uploads.append(KEY, 1000, DATA[1000:2000], granted)
        assert arrived(uploads) == DATA[:3000]
        uploads.append(KEY, 2000, DATA[2000:5000], granted)
        assert arrived(uploads) == DATA[:5000]

    @pytest.mark.parametrize("at", [1, 11, 10**9])
    def test_bytes_beyond_the_end_are_not_written(self, backing: Backing, at: int) -> None:
        uploads, _ = backing.open()
        with pytest.raises(Elsewhere) as nothing:
            uploads.append(KEY, at, b"x", granted)
        assert (nothing.value.offset, uploads.offset(KEY)) == (0, 0)
        uploads.append(KEY, 0, DATA[:10], granted)
        if at > 10:
            with pytest.raises(Elsewhere) as some:
                uploads.append(KEY, at, b"x", granted)
            assert some.value.offset == 10
        assert arrived(uploads) == DATA[:10]

    @pytest.mark.parametrize("other", [KEY._replace(digest=OTHER), KEY._replace(owner="agt_2")])
    def test_the_first_byte_of_another_one_discards_what_the_place_had(self, backing: Backing, other: UploadKey) -> None:
        uploads, _ = backing.open()
        elsewhere = KEY._replace(place="asg_2")
        uploads.append(elsewhere, 0, DATA[:5], granted)
        uploads.append(KEY, 0, DATA[:10], granted)
        uploads.append(other, 0, DATA[:7], granted)
        assert (uploads.offset(KEY), uploads.offset(other), uploads.offset(elsewhere)) == (0, 7, 5)
        assert set(uploads.keys()) == {other, elsewhere}

    @pytest.mark.parametrize("key", [KEY, KEY._replace(owner="agt_2")])
    def test_what_may_not_be_written_changes_nothing(self, backing: Backing, key: UploadKey) -> None:
        uploads, _ = backing.open()
        uploads.append(KEY, 0, DATA[:10], granted)

        def denied() -> None:
            raise PermissionError

        for at in (0, 10):
            with pytest.raises(PermissionError):
                uploads.append(key, at, b"late", denied)
        assert (arrived(uploads), set(uploads.keys())) == (DATA[:10], {KEY})

    def test_who_has_the_place_next_writes_after_what_was_granted_before(self, backing: Backing) -> None:
        uploads, _ = backing.open()
        other = KEY._replace(owner="agt_2")
        with ThreadPoolExecutor(1) as thread:
            following: list[Future[None]] = []

            def granted_at_last() -> None:
                following.append(thread.submit(backing.open()[0].append, other, 0, DATA[:7], granted))
                with pytest.raises(TimeoutError):
                    following[0].result(timeout=0.2)

            uploads.append(KEY, 0, DATA, granted_at_last)
            following[0].result()
        assert (uploads.offset(KEY), uploads.offset(other)) == (0, 7)

    def test_a_finished_upload_is_a_blob_and_nothing_else(self, backing: Backing) -> None:
        uploads, store = backing.open()
        uploads.append(KEY, 0, DATA, granted)
        assert not store.has(DIGEST)
        finish(uploads)
        assert store.has(DIGEST)
        assert uploads.offset(KEY) == 0
        with pytest.raises(NothingArrived):
            finish(uploads)
        assert backing.open()[0].is_kept(KEY), "it is remembered whose it was"
        assert not uploads.is_kept(KEY._replace(owner="agt_2"))
        uploads.discard(KEY)
        assert (uploads.is_kept(KEY), set(uploads.keys()), store.has(DIGEST)) == (False, set(), True)

    @pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"\0", b"\1" + DATA[1:]])
    def test_bytes_of_another_digest_become_no_blob(self, backing: Backing, wrong: bytes) -> None:
        uploads, store = backing.open()
        uploads.append(KEY, 0, wrong, granted)
        with pytest.raises(BlobCorrupt):
            finish(uploads)
        assert (list(store.stored()), uploads.is_kept(KEY)) == ([], False)
        assert arrived(uploads) == wrong, "whoever judges it drops it"
        with uploads.take(KEY) as taken:
            taken.drop()
            taken.drop()
        assert uploads.offset(KEY) == 0

    def test_what_is_being_checked_cannot_be_changed(self, backing: Backing) -> None:
        uploads, store = backing.open()
        uploads.append(KEY, 0, DATA, granted)
        with uploads.take(KEY) as taken:
            assert (uploads.offset(KEY), uploads.is_kept(KEY)) == (len(DATA), False)
            for at in (0, 10, len(DATA)):
                with pytest.raises(Elsewhere):
                    backing.open()[0].append(KEY, at, b"late", granted)
            with taken.open() as file:
                assert file.read() == DATA
            taken.keep()
        with store.open(DIGEST) as blob:
            assert blob.read() == DATA
        with pytest.raises(Elsewhere):
            uploads.append(KEY, len(DATA), b"late", granted)

    def test_a_discarded_upload_is_gone_also_for_whoever_checks_it(self, backing: Backing) -> None:
        uploads, store = backing.open()
        uploads.append(KEY, 0, DATA, granted)
        with uploads.take(KEY) as taken:
            with taken.open() as file:
                assert file.read() == DATA
            uploads.discard(KEY)
            with pytest.raises(NothingArrived):
                taken.keep()
        assert (store.has(DIGEST), uploads.is_kept(KEY), uploads.offset(KEY)) == (False, False, 0)

    def test_one_after_another_has_it(self, backing: Backing) -> None:
        uploads, store = backing.open()
        uploads.append(KEY, 0, DATA, granted)
        with ThreadPoolExecutor(1) as thread:
            with uploads.take(KEY) as taken:
                other = thread.submit(finish, backing.open()[0])
                with pytest.raises(TimeoutError):
                    other.result(timeout=0.2)
                taken.keep()
            with pytest.raises(NothingArrived):
                other.result()
        assert store.has(DIGEST)

    def test_what_arrived_before_there_was_no_room_is_kept(self, backing: Backing, monkeypatch: pytest.MonkeyPatch) -> None:
        uploads, _ = backing.open()
        uploads.append(KEY, 0, DATA[:1000], granted)
        with monkeypatch.context() as patch:
            backing.full(patch)
            with pytest.raises(StoreFull):
                uploads.append(KEY, 1000, DATA[1000:], granted)
        assert arrived(uploads) == DATA[:1000]
        uploads.append(KEY, 1000, DATA[1000:], granted)
        finish(uploads)

    def test_what_nobody_goes_on_with_is_swept_away(self, backing: Backing) -> None:
        uploads, _ = backing.open()
        old, young = KEY._replace(place="old"), KEY._replace(place="young")
        for key in (old, young):
            uploads.append(key, 0, DATA, granted)
        backing.age(old, 1000)
        backing.age(young, 10)
        uploads.sweep(100)
        assert (uploads.offset(old), uploads.offset(young)) == (0, len(DATA))


CHECKER = """
import sys
from pathlib import Path
from fedcybgd.coordinator.storage import open_store, open_uploads
from fedcybgd.coordinator.storage.uploads import UploadKey
folder = Path(sys.argv[1])
with open_uploads(folder / "uploads", open_store(folder / "blobs")).take(UploadKey(*sys.argv[2:])):
    print("taken", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_had_taken_has_arrived_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it had noted already that a blob came of it."""
    uploads, store = LocalBacking(tmp_path).open()
    uploads.append(KEY, 0, DATA, granted)
    with subprocess.Popen([sys.executable, "-c", CHECKER, tmp_path, *KEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        monkeypatch.setattr("fedcybgd.coordinator.storage.local_uploads.WAIT_S", 0.1)
        with pytest.raises(BeingChecked):
            finish(uploads)
        assert uploads.offset(KEY) == len(DATA)
        (tmp_path / "uploads" / f"{'-'.join(KEY)}.kept").touch()
        assert not uploads.is_kept(KEY)
        process.kill()
    assert (uploads.is_kept(KEY), uploads.offset(KEY), store.has(DIGEST)) == (False, len(DATA), False)
    finish(uploads)
    assert store.has(DIGEST)
