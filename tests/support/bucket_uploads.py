"""Uploads in object storage, as several coordinators on one database have them."""

from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import select, update

from fedcybgd.coordinator.bucket_uploads import FOLDER, BucketUploads
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import StoredUpload, UploadPiece
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.coordinator.storage.cache import BlobCache
from fedcybgd.coordinator.storage.object import ObjectBlobStore
from fedcybgd.coordinator.storage.uploads import UploadKey
from tests.support import buckets
from tests.support.migrated import begin_with_schema


class ObjectBacking:
    """Each opening has connections and a disk of its own, as on another machine."""

    def __init__(self, kind: str, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        begin_with_schema(url)
        self.bucket = buckets.KINDS[kind](folder, monkeypatch)
        self._url, self._folder, self._disks = url, folder, count()
        self._databases = [Database(url)]

    def open(self) -> tuple[BucketUploads, EngineStore]:
        self._databases.append(database := Database(self._url))
        store = ObjectBlobStore(self.bucket(), BlobCache(self._folder / f"disk-{next(self._disks)}", 1 << 30))
        return BucketUploads(database, self.bucket(), store), store

    @property
    def database(self) -> Database:
        return self._databases[0]

    def age(self, key: UploadKey, seconds: float) -> None:
        with self.database.transaction() as session:
            then = utcnow() - timedelta(seconds=seconds)
            session.execute(update(StoredUpload).where(StoredUpload.place == key.place).values(touched_at=then))

    def full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        buckets.fill(monkeypatch)

    def objects(self) -> set[str]:
        """Names of the pieces that are in the storage."""
        return {name.removeprefix(f"{FOLDER}/") for name in buckets.objects(self.bucket(), FOLDER)}

    def nothing_is_left_over(self) -> None:
        """Each object is named by a row, and of each upload so are its bytes, without a gap."""
        with self.database.reading() as session:
            pieces = session.scalars(select(UploadPiece).order_by(UploadPiece.upload_id, UploadPiece.at)).all()
            for upload in session.scalars(select(StoredUpload)):
                ends = [0, *(piece.at + piece.size for piece in pieces if piece.upload_id == upload.id)]
                assert ends[:-1] == [piece.at for piece in pieces if piece.upload_id == upload.id]
                assert ends[-1] == upload.size
        assert self.objects() == {piece.name for piece in pieces}

    def close(self) -> None:
        for database in self._databases:
            database.close()
