"""One class of promises, run over every implementation of `Uploads`."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from fedcybgd.coordinator.storage import BlobCorrupt, BlobStore, StoreFull, Uploads, open_store, open_uploads
from fedcybgd.coordinator.storage.uploads import NothingArrived
from fedcybgd.shared.contract.digests import digest_of
from tests.support.memory_store import Memory, MemoryStore, MemoryUploads

DATA = bytes(range(256)) * 100
DIGEST = digest_of(DATA)
KEY = f"asg_1-{DIGEST}"


class Backing(Protocol):
    def open(self) -> tuple[Uploads, BlobStore]:
        """As another process would open them."""
        ...

    def age(self, key: str, seconds: float) -> None:
        """Nobody has added to this upload for so long."""
        ...

    def full(self, monkeypatch: pytest.MonkeyPatch) -> None: ...


class LocalBacking:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> tuple[Uploads, BlobStore]:
        store = open_store(self._folder / "blobs")
        return open_uploads(self._folder / "uploads", store), store

    def age(self, key: str, seconds: float) -> None:
        then = time.time() - seconds
        os.utime(self._folder / "uploads" / f"{key}.part", (then, then))

    def full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_room(*_: Any, **__: Any) -> Any:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr("fedcybgd.coordinator.storage.local_uploads.os.open", no_room)


class MemoryBacking:
    def __init__(self, _folder: Path) -> None:
        self._memory = Memory()

    def open(self) -> tuple[Uploads, BlobStore]:
        return MemoryUploads(self._memory), MemoryStore(self._memory)

    def age(self, key: str, seconds: float) -> None:
        self._memory.uploads[key] = (self._memory.uploads[key][0], time.time() - seconds)

    def full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self._memory, "full", "write")


BACKINGS: dict[str, Callable[[Path], Backing]] = {"local": LocalBacking, "memory": MemoryBacking}


@pytest.fixture(params=BACKINGS)
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> Backing:
    return BACKINGS[request.param](tmp_path)


def arrived(uploads: Uploads, key: str = KEY) -> bytes:
    with uploads.open(key) as file:
        return file.read()


class TestUploads:
    def test_an_upload_begins_with_its_first_byte(self, backing: Backing) -> None:
        uploads, _ = backing.open()
        assert uploads.offset(KEY) == 0
        with pytest.raises(NothingArrived):
            uploads.open(KEY)
        uploads.append(KEY, 0, DATA[:10])
        assert (uploads.offset(KEY), arrived(uploads)) == (10, DATA[:10])
        assert uploads.offset(KEY.replace("asg_1", "asg_2")) == 0

    def test_it_goes_on_in_another_process(self, backing: Backing) -> None:
        backing.open()[0].append(KEY, 0, DATA[:1000])
        uploads, store = backing.open()
        assert uploads.offset(KEY) == 1000
        uploads.append(KEY, 1000, DATA[1000:])
        uploads.finish(KEY, DIGEST)
        with store.open(DIGEST) as blob:
            assert blob.read() == DATA

    def test_a_repeat_writes_the_same_bytes_to_the_same_place(self, backing: Backing) -> None:
        uploads, _ = backing.open()
        uploads.append(KEY, 0, DATA[:3000])
        uploads.append(KEY, 1000, DATA[1000:2000])
        assert arrived(uploads) == DATA[:3000]
        uploads.append(KEY, 2000, DATA[2000:5000])
        assert arrived(uploads) == DATA[:5000]

    def test_a_finished_upload_is_a_blob_and_nothing_else(self, backing: Backing) -> None:
        uploads, store = backing.open()
        uploads.append(KEY, 0, DATA)
        assert not store.has(DIGEST)
        uploads.finish(KEY, DIGEST)
        assert store.has(DIGEST)
        assert uploads.offset(KEY) == 0
        with pytest.raises(NothingArrived):
            uploads.finish(KEY, DIGEST)

    @pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"\0", b"\1" + DATA[1:]])
    def test_bytes_of_another_digest_become_no_blob(self, backing: Backing, wrong: bytes) -> None:
        uploads, store = backing.open()
        uploads.append(KEY, 0, wrong)
        with pytest.raises(BlobCorrupt):
            uploads.finish(KEY, DIGEST)
        assert list(store.stored()) == []
        assert arrived(uploads) == wrong, "whoever judges it discards it"
        uploads.discard(KEY)
        uploads.discard(KEY)
        assert uploads.offset(KEY) == 0

    def test_what_arrived_before_there_was_no_room_is_kept(self, backing: Backing, monkeypatch: pytest.MonkeyPatch) -> None:
        uploads, _ = backing.open()
        uploads.append(KEY, 0, DATA[:1000])
        with monkeypatch.context() as patch:
            backing.full(patch)
            with pytest.raises(StoreFull):
                uploads.append(KEY, 1000, DATA[1000:])
        assert arrived(uploads) == DATA[:1000]
        uploads.append(KEY, 1000, DATA[1000:])
        uploads.finish(KEY, DIGEST)

    def test_what_nobody_goes_on_with_is_swept_away(self, backing: Backing) -> None:
        uploads, _ = backing.open()
        old, young = f"old-{DIGEST}", f"young-{DIGEST}"
        for key in (old, young):
            uploads.append(key, 0, DATA)
        backing.age(old, 1000)
        backing.age(young, 10)
        uploads.sweep(100)
        assert (uploads.offset(old), uploads.offset(young)) == (0, len(DATA))
