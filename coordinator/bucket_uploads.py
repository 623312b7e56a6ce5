"""Keeps uploads as objects, a piece each, beside the blobs in object storage; how far each is stands in the database, for every coordinator."""

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import BinaryIO

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.services.records import arrivals
from fedcybgd.coordinator.storage import EngineStore, StorageAway
from fedcybgd.coordinator.storage.bucket import Bucket
from fedcybgd.coordinator.storage.full import full_disk_told
from fedcybgd.coordinator.storage.renewed import renewed
from fedcybgd.coordinator.storage.uploads import BeingChecked, Elsewhere, NothingArrived, UploadKey

FOLDER = "uploads"
PIECE = 4 << 20
"""Bytes that are worth an object of their own; of each request that sends, so many are in memory"""
WAIT_S, LOOK_EVERY_S = 30.0, 0.2
RENEW_EVERY_S = arrivals.CHECKED_FOR.total_seconds() / 4


class BucketUploads:
    """The bytes go to the storage outside of any transaction; only then are they written down, under the lock of their place. What is not
    written down has not arrived, and is deleted again: at once, or after a crash by `sweep`, for an object that no row names is nobody's.
    """

    best_piece = PIECE

    def __init__(self, database: Database, bucket: Bucket, store: EngineStore) -> None:
        self._database, self._bucket, self._store = database, bucket, store

    def offset(self, key: UploadKey) -> int:
        with self._database.reading() as session:
            upload = arrivals.find(session, key)
            return 0 if upload is None else upload.size

    def is_kept(self, key: UploadKey) -> bool:
        with self._database.reading() as session:
            upload = arrivals.find(session, key)
            return upload is not None and upload.kept

    def append(self, key: UploadKey, at: int, data: bytes, may: Callable[[], None]) -> None:
        done = False
        while not done:  # somebody else may have appended while the bytes went to the storage
            arrived = self.offset(key)
            if at <= arrived < at + len(data):
                with self._sent(key, arrived, data[arrived - at :]) as piece:
                    done = self._write_down(key, at, len(data), may, arrived, piece)
            else:
                done = self._write_down(key, at, len(data), may, arrived, None)

    @contextmanager
    def _sent(self, key: UploadKey, at: int, data: bytes) -> Iterator[str]:
        """The name of a new piece, which goes again unless it became part of an upload."""
        name = f"{key.place}/{at:012}-{secrets.token_hex(8)}"
        with self._database.transaction() as session:
            arrivals.announce(session, name, at, len(data), utcnow())
        try:
            self._bucket.put(f"{FOLDER}/{name}", data)
            yield name
        finally:
            with self._database.transaction() as session:
                nobodys = arrivals.withdraw(session, name)
            if nobodys:
                self._delete([name])

    def _write_down(self, key: UploadKey, at: int, length: int, may: Callable[[], None], arrived: int, piece: str | None) -> bool:
        """Whether these bytes have arrived now, `piece` being those beyond the ones that had."""
        gone: list[str] = []
        with self._database.transaction() as session:
            upload, now = arrivals.alone(session, key), utcnow()
            may()
            size = 0 if upload is None else upload.size
            if at > size or arrivals.is_checked(upload, now):
                raise Elsewhere(size)
            if at + length <= size:
                return True
            if piece is None or size != arrived:
                return False
            if upload is None or size == 0:
                upload, gone = arrivals.begin(session, key, now)
            if not arrivals.add(session, upload, piece, now):
                session.rollback()
                return False
        self._delete(gone)
        return True

    @contextmanager
    def take(self, key: UploadKey) -> Iterator["BucketTaken"]:
        word = secrets.token_hex(8)
        with self._store.scratch() as folder:
            names, size = self._hold(key, word)
            with self._renewed(key, word):
                yield BucketTaken(self._database, self._bucket, self._store, key, word, names, size, folder / "whole")

    def _hold(self, key: UploadKey, word: str) -> tuple[Collection[str], int]:
        """The pieces of an upload, which this request checks from now on, and their bytes."""
        until = monotonic() + WAIT_S
        while True:
            with self._database.transaction() as session:
                upload, now = arrivals.alone(session, key), utcnow()
                if upload is None or upload.kept:
                    raise NothingArrived(key)
                if not arrivals.is_checked(upload, now):
                    arrivals.check(upload, word, now)
                    return arrivals.pieces(session, upload), upload.size
            if monotonic() > until:
                raise BeingChecked(key)
            sleep(LOOK_EVERY_S)

    @contextmanager
    def _renewed(self, key: UploadKey, word: str) -> Iterator[None]:
        def renew() -> None:
            with self._database.transaction() as session:
                arrivals.still_checks(session, key, word, utcnow())

        try:
            with renewed(RENEW_EVERY_S, renew):
                yield
        finally:
            with self._database.transaction() as session:
                arrivals.put_back(session, key, word)

    def discard(self, key: UploadKey) -> None:
        with self._database.transaction() as session:
            gone = arrivals.discard(session, key)
        self._delete(gone)

    def keys(self) -> Collection[UploadKey]:
        with self._database.reading() as session:
            return arrivals.known(session)

    def sweep(self, older_than_s: float) -> None:
        with self._database.reading() as session:
            old = arrivals.untouched(session, utcnow() - timedelta(seconds=older_than_s))
        for key in old:
            self.discard(key)
        # Listed before the rows are read: what is written meanwhile is not judged.
        there = [found.name.removeprefix(f"{FOLDER}/") for found in self._bucket.list(FOLDER)]
        with self._database.transaction() as session:
            named = arrivals.named(session, utcnow())
        self._bucket.delete(f"{FOLDER}/{name}" for name in there if name not in named)

    def _delete(self, names: Iterable[str]) -> None:
        delete_pieces(self._bucket, names)


class BucketTaken:
    def __init__(
        self, database: Database, bucket: Bucket, store: EngineStore, key: UploadKey, word: str, names: Collection[str], size: int, path: Path
    ) -> None:  # fmt: skip
        self._database, self._bucket, self._store = database, bucket, store
        self._key, self._word, self._names, self._size, self._path = key, word, names, size, path

    def open(self) -> BinaryIO:
        return self._whole().open("rb")

    def keep(self) -> None:
        path = self._whole()
        with self._database.transaction() as session:
            if not arrivals.still_checks(session, self._key, self._word, utcnow()):
                raise NothingArrived(self._key)
        self._store.adopt(path, self._key.digest)
        # Were the process to die here, it would be checked and kept once more; a blob that nobody refers to is garbage.
        with self._database.transaction() as session:
            gone = arrivals.keep(session, self._key, self._word, utcnow())
        if gone is None:
            raise NothingArrived(self._key)
        delete_pieces(self._bucket, gone)

    def drop(self) -> None:
        with self._database.transaction() as session:
            gone = arrivals.discard(session, self._key, self._word)
        delete_pieces(self._bucket, gone)

    def _whole(self) -> Path:
        """All pieces, put together on this machine's disk."""
        if self._path.exists() and self._path.stat().st_size == self._size:
            return self._path
        try:
            with full_disk_told(self._path.parent, self._size), self._path.open("wb") as file:
                for name in self._names:
                    for chunk in self._bucket.chunks(f"{FOLDER}/{name}"):
                        file.write(chunk)
                if file.tell() != self._size:
                    raise FileNotFoundError(f"{file.tell()} of {self._size} bytes are there")
        except FileNotFoundError:  # the storage has lost some: what there is of the rest is of no use
            self.drop()
            raise NothingArrived(self._key) from None
        return self._path


def delete_pieces(bucket: Bucket, names: Iterable[str]) -> None:
    """Objects that no row names any more; where the storage is away, `sweep` does it another time."""
    with suppress(StorageAway):
        bucket.delete(f"{FOLDER}/{name}" for name in names)
