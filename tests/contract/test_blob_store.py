"""One class of promises, run over every implementation of `BlobStore`."""

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.storage import BlobCorrupt, BlobDamaged, BlobMissing, BlobStore, EngineStore, StoreFull, local, open_store
from fedcybgd.coordinator.storage.cache import BlobCache
from fedcybgd.coordinator.storage.object import ObjectBlobStore
from fedcybgd.shared.contract.digests import digest_of, digest_of_file
from tests.support import buckets
from tests.support.memory_store import Memory, MemoryStore

DATA = bytes(range(256)) * 1000
DIGEST = digest_of(DATA)
ABSENT = digest_of(b"never stored")


class Backing(Protocol):
    """An implementation, and what a test must be able to do to it from outside."""

    links: bool

    def open(self) -> EngineStore:
        """The store, as another process would open it."""
        ...

    def contents(self) -> dict[str, bytes]:
        """All bytes that it keeps, finished or not, by name."""
        ...

    def spoil(self, digest: str) -> None:
        """Change a byte of a blob behind the store's back."""
        ...

    def full(self, when: str) -> Any:
        """A context in which there is no room: "open", "write" or "finish" fails."""
        ...


class LocalBacking:
    links = False

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root, self._monkeypatch = folder / "blobs", monkeypatch

    def open(self) -> EngineStore:
        return open_store(self._root)

    def contents(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in self._root.rglob("*") if p.is_file()}

    def spoil(self, digest: str) -> None:
        place = self._root / digest[:2] / digest
        place.write_bytes(b"?" + place.read_bytes()[1:])

    @contextmanager
    def full(self, when: str) -> Iterator[None]:
        with full_disk(self._monkeypatch, when) as patch:
            if when == "finish":
                patch.setattr(local.os, "fsync", no_room)
            yield


def no_room(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, when: str) -> Iterator[pytest.MonkeyPatch]:
    opened = Path.open

    def open_full(path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        if "w" not in mode:
            return opened(path, mode, *args, **more)
        if when == "open":
            no_room()
        return FullFile(opened(path, mode, *args, **more), when)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        yield patch


class FullFile:
    """Takes half of what is written, as a disk does that becomes full."""

    def __init__(self, file: Any, when: str) -> None:
        self._file, self._when = file, when

    def write(self, data: Any) -> int:
        if self._when == "write":
            self._file.write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class MemoryBacking:
    links = False

    def __init__(self, _folder: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
        self._memory = Memory()

    def open(self) -> EngineStore:
        return MemoryStore(self._memory)

    def contents(self) -> dict[str, bytes]:
        return {digest: data for digest, (data, _) in self._memory.blobs.items()}

    @contextmanager
    def full(self, when: str) -> Iterator[None]:
        self._memory.full = when
        yield
        self._memory.full = None

    def spoil(self, digest: str) -> None:
        data, written = self._memory.blobs[digest]
        self._memory.blobs[digest] = (b"?" + data[1:], written)


class ObjectBacking:
    """Each opening has a disk of its own for copies, as on another machine."""

    def __init__(self, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.links = kind == "s3"
        self._folder, self._monkeypatch = folder, monkeypatch
        self._bucket = buckets.KINDS[kind](folder, monkeypatch)
        self._disks = count()

    def open(self) -> EngineStore:
        return ObjectBlobStore(self._bucket(), BlobCache(self._folder / f"disk-{next(self._disks)}", 1 << 30))

    def contents(self) -> dict[str, bytes]:
        aside = [path for path in self._folder.glob("disk-*/incoming/*") if path.is_file()]
        return {name.rpartition("/")[2]: data for name, data in buckets.objects(self._bucket()).items()} | {
            path.name: path.read_bytes() for path in aside
        }

    def spoil(self, digest: str) -> None:
        name = f"blobs/{digest[:2]}/{digest}"
        self._bucket().put(name, b"?" + (self._bucket().read(name) or b"")[1:])
        for copy in self._folder.glob(f"disk-*/{digest[:2]}/{digest}"):
            copy.unlink()

    @contextmanager
    def full(self, when: str) -> Iterator[None]:
        with buckets.full(self._monkeypatch) if when == "finish" else full_disk(self._monkeypatch, when):
            yield


BACKINGS: dict[str, Callable[..., Backing]] = {
    "local": LocalBacking,
    "memory": MemoryBacking,
    **{f"objects-{kind}": partial(ObjectBacking, kind) for kind in buckets.KINDS},
}
"""The second shows that the promises are no accident of files."""


@pytest.fixture(params=BACKINGS)
def backing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backing:
    return BACKINGS[request.param](tmp_path, monkeypatch)


@pytest.fixture
def store(backing: Backing) -> EngineStore:
    return backing.open()


def read(store: BlobStore, digest: str = DIGEST) -> bytes:
    with store.open(digest) as blob:
        return blob.read()


def put(store: BlobStore, data: bytes = DATA, chunk: int = 10_000) -> str:
    with store.writer() as writer:
        for start in range(0, len(data), chunk):
            writer.write(data[start : start + chunk])
    return writer.digest


class TestBlobStore:
    def test_what_was_written_is_there_under_its_digest(self, store: BlobStore) -> None:
        with store.writer() as writer:
            writer.write(DATA[:1000])
            writer.write(memoryview(DATA)[1000:])
        assert (writer.digest, writer.size) == (DIGEST, len(DATA))
        assert store.has(DIGEST)
        assert store.size(DIGEST) == len(DATA)
        assert read(store) == DATA

    def test_any_part_of_a_blob_can_be_read(self, store: BlobStore) -> None:
        put(store)
        with store.open(DIGEST) as blob:
            for start, length in ((1000, 7), (0, 1), (len(DATA) - 3, 100), (len(DATA), 1), (500, 70_000)):
                blob.seek(start)
                assert blob.read(length) == DATA[start : start + length]

    def test_the_engine_gets_a_file_of_it(self, store: EngineStore) -> None:
        put(store)
        with store.localised(DIGEST) as path:
            assert path.read_bytes() == DATA
        assert store.has(DIGEST)

    def test_a_file_that_is_mapped_stays_readable_after_its_block(self, store: EngineStore) -> None:
        put(store)
        with store.localised(DIGEST) as path, path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert mapped[:] == DATA

    def test_what_is_not_its_digest_any_more_is_damaged_then_missing_and_can_be_written_again(
        self, backing: Backing, store: EngineStore
    ) -> None:
        for ask in (store.check, store.open, lambda digest: store.localised(digest).__enter__()):
            put(store)
            backing.spoil(DIGEST)
            with pytest.raises(BlobDamaged) as damaged:
                ask(DIGEST)
            assert (damaged.value.code, damaged.value.status, damaged.value.detail) == ("blob_damaged", 503, {"digest": DIGEST})
            with pytest.raises(BlobMissing):
                store.check(DIGEST)
        put(store)
        store.check(DIGEST)

    def test_what_was_written_or_touched_since_is_not_deleted(self, store: BlobStore) -> None:
        put(store)
        for again in (put, lambda store: store.touch(DIGEST)):
            before = dict(store.stored())[DIGEST]
            time.sleep(0.02)  # a file system's clock has ticks
            again(store)
            assert store.delete(DIGEST, before) is False
        assert store.delete(DIGEST, dict(store.stored())[DIGEST]) is True
        assert not store.has(DIGEST)

    def test_a_hold_is_seen_by_all_who_opened_the_store(self, backing: Backing, store: BlobStore) -> None:
        assert not store.is_held()
        with backing.open().hold():
            assert store.is_held()

    def test_a_link_is_an_address_or_nothing(self, backing: Backing, store: BlobStore) -> None:
        put(store)
        link = store.link(DIGEST, 60)
        assert (link is not None) == backing.links
        if link is not None:
            part = httpx.get(link, headers={"Range": "bytes=10-19"})
            assert (part.status_code, part.content) == (206, DATA[10:20])

    def test_an_empty_blob_is_a_blob(self, store: BlobStore) -> None:
        digest = put(store, b"")
        assert digest == digest_of(b"")
        assert store.has(digest)
        assert store.size(digest) == 0

    def test_it_is_there_for_whoever_opens_the_store_later(self, backing: Backing, store: BlobStore) -> None:
        put(store)
        assert read(backing.open()) == DATA

    def test_the_same_bytes_again_are_one_blob(self, backing: Backing, store: BlobStore) -> None:
        assert put(store) == put(store, chunk=777) == DIGEST
        assert list(backing.contents().values()) == [DATA]

    def test_what_is_missing_is_said_to_be(self, store: EngineStore) -> None:
        assert not store.has(ABSENT)
        for ask in (store.size, store.check, store.open, store.touch, lambda digest: store.localised(digest).__enter__()):
            with pytest.raises(BlobMissing) as missing:
                ask(ABSENT)
            assert (missing.value.code, missing.value.status) == ("blob_missing", 404)

    def test_nothing_is_there_before_the_end(self, store: BlobStore) -> None:
        with store.writer() as writer:
            writer.write(DATA)
            assert not store.has(DIGEST)
        assert store.has(DIGEST)

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_a_writer_that_fails_leaves_nothing(self, backing: Backing, store: BlobStore, error: type[BaseException]) -> None:
        def write_and_fail() -> None:
            with store.writer() as writer:
                writer.write(DATA)
                raise error

        with pytest.raises(error):
            write_and_fail()
        assert backing.contents() == {}

    @pytest.mark.parametrize("when", ["open", "write", "finish"])
    def test_a_full_store_says_so_and_keeps_nothing_of_it(self, backing: Backing, store: BlobStore, when: str) -> None:
        before = put(store, b"here before")
        with backing.full(when), pytest.raises(StoreFull) as full:
            put(store)
        assert (full.value.code, full.value.status) == ("disk_full", 507)
        assert isinstance(full.value, CoordinatorError)
        assert backing.contents() == {before: b"here before"}
        assert put(store) == DIGEST, "it works again once there is room"

    def test_a_file_is_taken_in_whole_and_leaves_its_place(self, store: EngineStore, tmp_path: Path) -> None:
        source = tmp_path / "delta.part"
        source.write_bytes(DATA)
        store.adopt(source, DIGEST)
        assert not source.exists()
        assert read(store) == DATA

    def test_a_file_that_the_store_has_already_is_taken_in_again(self, backing: Backing, store: EngineStore, tmp_path: Path) -> None:
        put(store)
        source = tmp_path / "delta.part"
        source.write_bytes(DATA)
        store.adopt(source, DIGEST)
        assert not source.exists()
        assert list(backing.contents().values()) == [DATA]

    @pytest.mark.parametrize("spoil", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b"", lambda d: d[:-1] + b"\0"])
    def test_a_file_with_another_digest_is_refused_and_left_where_it_is(
        self, backing: Backing, store: EngineStore, tmp_path: Path, spoil: Callable[[bytes], bytes]
    ) -> None:
        source = tmp_path / "delta.part"
        source.write_bytes(spoil(DATA))
        with pytest.raises(BlobCorrupt) as refused:
            store.adopt(source, DIGEST)
        assert (refused.value.code, refused.value.status) == ("digest_mismatch", 422)
        assert refused.value.detail == {"expected": DIGEST, "actual": digest_of(spoil(DATA))}
        assert source.read_bytes() == spoil(DATA)
        assert backing.contents() == {}

    def test_a_full_store_takes_no_file_and_leaves_it_where_it_is(self, backing: Backing, store: EngineStore, tmp_path: Path) -> None:
        source = tmp_path / "delta.part"
        source.write_bytes(DATA)
        with backing.full("finish"), pytest.raises(StoreFull):
            store.adopt(source, DIGEST)
        assert source.read_bytes() == DATA
        assert backing.contents() == {}
        store.adopt(source, DIGEST)
        assert store.has(DIGEST)

    def test_a_blob_can_be_deleted_and_one_that_is_not_there_too(self, store: BlobStore) -> None:
        put(store)
        store.delete(DIGEST)
        store.delete(DIGEST)
        store.delete(ABSENT)
        assert not store.has(DIGEST)

    def test_all_blobs_are_listed_with_the_time_when_they_came(self, store: EngineStore, tmp_path: Path) -> None:
        assert list(store.stored()) == []
        began = time.time() - 1
        source = tmp_path / "delta.part"
        source.write_bytes(b"its last byte arrived long ago")
        os.utime(source, (1, 1))
        store.adopt(source, digest_of_file(source))
        put(store)
        with store.writer() as unfinished:
            unfinished.write(b"not a blob yet")
            listed = dict(store.stored())
        assert set(listed) == {DIGEST, digest_of(b"its last byte arrived long ago")}
        assert all(began < written < time.time() + 1 for written in listed.values())

    def test_many_writers_of_the_same_and_of_other_bytes(self, store: BlobStore) -> None:
        blobs = [bytes([i % 4]) * 50_000 for i in range(12)]
        threads = [threading.Thread(target=put, args=(store, blob, 5_000)) for blob in blobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(read(store, digest_of(blob)) == blob for blob in blobs)

    def test_a_reader_never_sees_half_of_a_blob(self, store: BlobStore) -> None:
        put(store)
        with store.open(DIGEST) as reading:
            first = reading.read(1000)
            put(store)  # the same blob, written again
            assert first + reading.read() == DATA
