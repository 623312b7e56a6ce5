"""The bytes of a file of a model upload: appended to what has arrived; when the last one is there they are checked, and become a blob."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.domain.model_files import ModelFilesRefused, ModelTooLarge, ModelUploadFile
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.coordinator.services.operate import model_uploads
from fedcybgd.coordinator.services.path.upload import OffsetMismatch, UploadIncomplete
from fedcybgd.coordinator.storage import BlobCorrupt, BlobStore, Uploads
from fedcybgd.coordinator.storage.uploads import BeingChecked, Elsewhere, NothingArrived, TakenUpload
from fedcybgd.shared.contract.assignments import UploadOffset
from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.contract.model_uploads import WEIGHTS
from fedcybgd.shared.files.safetensors_header import header_of

LARGEST_HEADER = 16 << 20
"""Bytes of a header that this process parses; a hundred thousand tensors have less."""
May = Callable[[Session], None]
"""Raises for who may not do it (any more)"""
Note = Callable[[Session, str], None]
"""Writes down that a file has arrived, by its digest and name"""


class ReceivingFile:
    """One request that appends bytes to a file; what arrived before a cut is kept."""

    def __init__(self, database: Database, store: BlobStore, uploads: Uploads, upload_id: str, file: ModelUploadFile, at: int) -> None:
        self._database, self._store, self._uploads, self._upload_id, self._file = database, store, uploads, upload_id, file
        self._key, self._at = model_uploads.key_of(upload_id, file.digest), at
        self.complete = model_uploads.is_there(upload_id, file, store, uploads)
        """it has arrived already: there is nothing to be read"""

    def append(self, data: bytes, may: May) -> None:
        def still_may() -> None:
            with self._database.reading() as session:
                may(session)
                model_uploads.get(session, self._upload_id)

        if self._at + len(data) > self._file.size:
            raise _too_large(self._file)
        try:
            self._uploads.append(self._key, self._at, data, still_may)
        except Elsewhere as error:
            raise _mismatch(error.offset) from error
        self._at += len(data)

    def end(self, may: May, note: Note, clock: Callable[[], datetime]) -> UploadOffset:
        """Where it goes on; a file that is whole is checked, which takes as long as to read it, and counts as arrived.

        Raises `BlobCorrupt` or `ModelFilesRefused` for what is wrong, which is thrown away, and `UploadIncomplete` while somebody else checks it.
        """
        if not self.complete and (arrived := self._uploads.offset(self._key)) < self._file.size and not self._was_kept():
            return UploadOffset(offset=arrived, complete=False)
        if not (self.complete and self._file.arrived):  # or it had arrived before, and its blob was lost
            self._keep()
            with self._database.transaction() as session:
                may(session)
                file = model_uploads.arrived(session, self._upload_id, self._file.digest, clock())
                note(session, f"{file.digest} {file.name}")
            self._uploads.discard(self._key)
        return UploadOffset(offset=self._file.size, complete=True)

    def _was_kept(self) -> bool:
        """It became a blob: a moment ago by another request, or before a crash."""
        with self._database.reading() as session:
            files = model_uploads.get(session, self._upload_id).files
        now = next(file for file in files if file.digest == self._file.digest)
        return model_uploads.is_there(self._upload_id, now, self._store, self._uploads)

    def _keep(self) -> None:
        try:
            with self._uploads.take(self._key) as taken:
                try:
                    self._check(taken)
                    taken.keep()
                except (ModelFilesRefused, BlobCorrupt):
                    taken.drop()
                    raise
        except BeingChecked:
            raise UploadIncomplete("this file is being checked; ask again in a moment") from None
        except NothingArrived:
            if not self._was_kept():
                raise UploadIncomplete("nothing of this file has arrived; upload it", offset=0) from None
        self._store.touch(self._file.digest)

    def _check(self, taken: TakenUpload) -> None:
        """Weights are safetensors, whatever they are called."""
        if self._file.name.endswith(WEIGHTS):
            try:
                with taken.open() as file:
                    header_of(file, self._file.name, LARGEST_HEADER)
            except HeaderError as error:
                raise ModelFilesRefused(f"{error.message}; it was thrown away", name=self._file.name) from error


def begin(
    database: Database, store: BlobStore, uploads: Uploads, upload_id: str, digest: str, offset: int, length: int | None, now: datetime
) -> ReceivingFile:
    """Raises before the first byte for a request that cannot be taken: `length` bytes, if that is known, from `offset` on."""
    with database.transaction() as session:
        upload = model_uploads.get(session, upload_id, lock=True)
        upload.touched_at = now
        file = next((file for file in upload.files if file.digest == digest), None)
    if file is None:
        raise NotFound(f"no file of upload {upload_id} has the digest {digest}")
    receiving = ReceivingFile(database, store, uploads, upload_id, file, offset)
    if not receiving.complete:
        if offset != (arrived := uploads.offset(model_uploads.key_of(upload_id, digest))):
            raise _mismatch(arrived)
        if length is not None and offset + length > file.size:
            raise _too_large(file)
    return receiving


def _mismatch(arrived: int) -> OffsetMismatch:
    return OffsetMismatch(f"{arrived} bytes have arrived; send from there", offset=arrived)


def _too_large(file: ModelUploadFile) -> ModelTooLarge:
    return ModelTooLarge(f"{file.name} was announced with {file.size} bytes; no more are taken", limit=file.size)
