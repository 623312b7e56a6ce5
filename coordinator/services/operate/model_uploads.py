"""Models that come from another machine: their files are announced, arrive by digest in as many requests as it takes, and are added then."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Model, ModelUpload
from fedcybgd.coordinator.db.paging import Listed, Order, Page
from fedcybgd.coordinator.db.upsert import upsert
from fedcybgd.coordinator.domain import model_files
from fedcybgd.coordinator.domain.model_files import ModelUploadFile
from fedcybgd.coordinator.errors import Conflict, NotFound
from fedcybgd.coordinator.services.operate import models
from fedcybgd.coordinator.services.path.upload import UploadIncomplete
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.storage import BlobStore, Uploads
from fedcybgd.coordinator.storage.uploads import UploadKey
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.model_uploads import ModelFileView, ModelUploadEntry, ModelUploadRequest, ModelUploadView, source_of
from fedcybgd.shared.contract.sizes import counted

MOST_OPEN = 20
"""Uploads that are under way at the same time"""
NAMED = 5
UPLOADS = Order(ModelUpload.created_at, ModelUpload.id, newest_first=True)


class TooManyUploads(Conflict):
    code = "too_many_uploads"


def begin(session: Session, store: BlobStore, asked: ModelUploadRequest, by: str, most: int, now: datetime) -> ModelUpload:
    """The upload of these files under this name, also if it was begun before. What has arrived of them for another upload has arrived for this one.

    Raises `ModelFilesRefused`, `ModelTooLarge`, `ModelNameTaken`, `TooManyUploads`.
    """
    model_files.check(asked.files, most)
    models.check_name_free(session, asked.name)
    upload_id = asked.upload_id()
    if (before := session.get(ModelUpload, upload_id, with_for_update=True)) is not None:
        before.touched_at = now
        return before
    if (session.scalar(select(func.count(ModelUpload.id))) or 0) >= MOST_OPEN:
        raise TooManyUploads(f"{MOST_OPEN} uploads of models are under way; add one, or discard one (fedcoord models discard)")
    there = {file.digest for files in session.scalars(select(ModelUpload.files)) for file in files if file.arrived}
    files = [ModelUploadFile(**dict(file), arrived=file.digest in there and store.has(file.digest)) for file in asked.files]
    row = upsert(session, ModelUpload).values(id=upload_id, name=asked.name, begun_by=by, files=files, created_at=now, touched_at=now)
    session.execute(row.on_conflict_do_nothing())
    total = sum(file.size for file in files)
    record(
        session,
        now,
        "info",
        "model_upload_begun",
        f"{by} uploads model {asked.name} ({upload_id}): {counted(len(files), 'file')}, {total:,} bytes",
    )
    return session.get_one(ModelUpload, upload_id)


def get(session: Session, upload_id: str, lock: bool = False) -> ModelUpload:
    found = session.get(ModelUpload, upload_id, with_for_update=lock or None)
    if found is None:
        raise NotFound(f"there is no upload {upload_id!r}; it was added, was discarded or has expired: begin it again, with the same files")
    return found


def view(upload: ModelUpload, store: BlobStore, uploads: Uploads) -> ModelUploadView:
    """With what has arrived of each file."""
    keys = uploads.keys()
    files = [_arriving(upload.id, file, store, uploads, keys) for file in upload.files]
    return ModelUploadView(**dict(_entry(upload)), complete=all(file.complete for file in files), files=files)


def _arriving(upload_id: str, file: ModelUploadFile, store: BlobStore, uploads: Uploads, keys: Collection[UploadKey]) -> ModelFileView:
    key, offset = key_of(upload_id, file.digest), 0
    complete = file.arrived and store.has(file.digest)
    if not complete and key in keys:  # else nobody is asked: there may be a thousand files
        complete = is_there(upload_id, file, store, uploads)
        offset = uploads.offset(key)
    return ModelFileView(name=file.name, digest=file.digest, size=file.size, offset=file.size if complete else offset, complete=complete)


def is_there(upload_id: str, file: ModelUploadFile, store: BlobStore, uploads: Uploads) -> bool:
    """Whether all of it is a blob, also if nobody came to write that down."""
    return (file.arrived or uploads.is_kept(key_of(upload_id, file.digest))) and store.has(file.digest)


def key_of(upload_id: str, digest: str) -> UploadKey:
    """Each file has a place of its own."""
    return UploadKey(f"{upload_id}_{digest[:16]}", upload_id, digest)


def listed(session: Session, page: Page) -> Listed[ModelUploadEntry]:
    """The newest first."""
    rows = UPLOADS.page(session, select(ModelUpload), page)
    return rows.map(lambda row: _entry(row[0]))


def _entry(upload: ModelUpload) -> ModelUploadEntry:
    return ModelUploadEntry(
        id=upload.id, name=upload.name, begun_by=upload.begun_by, number_of_files=len(upload.files),
        size=sum(file.size for file in upload.files), arrived_files=sum(file.arrived for file in upload.files),
        created_at=upload.created_at, touched_at=upload.touched_at,
    )  # fmt: skip


def arrived(session: Session, upload_id: str, digest: str, now: datetime) -> ModelUploadFile:
    """A file has arrived whole and is a blob."""
    upload = get(session, upload_id, lock=True)
    upload.files = [file.model_copy(update={"arrived": True}) if file.digest == digest else file for file in upload.files]
    upload.touched_at = now
    return next(file for file in upload.files if file.digest == digest)


def add(session: Session, store: BlobStore, uploads: Uploads, upload_id: str, now: datetime) -> Model:
    """Begin to import what has arrived; when that is done the upload goes, when it fails it stays.

    Raises `UploadIncomplete` as long as something is missing, `ModelNameTaken`.
    """
    upload = get(session, upload_id, lock=True)
    if missing := [file.name for file in upload.files if not is_there(upload.id, file, store, uploads)]:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UploadIncomplete(f"not whole yet: {', '.join(missing[:NAMED])}{more}; upload the rest first", missing=missing)
    files = [FileRef(name=file.name, digest=file.digest, size=file.size) for file in upload.files]
    upload.touched_at = now
    return models.add(session, upload.name, source_of(upload.id), now, files, upload.id)


def discard(session: Session, upload_id: str, now: datetime) -> None:
    """Forget an upload; what has arrived of it goes as garbage. A model that is being added of it goes on."""
    upload = get(session, upload_id, lock=True)
    session.delete(upload)
    record(session, now, "info", "model_upload_discarded", f"the upload of model {upload.name} ({upload.id}) was discarded")


def expire(session: Session, before: datetime, now: datetime) -> int:
    """Give up what nobody has sent anything of since then; how many that were."""
    old = session.scalars(select(ModelUpload).where(ModelUpload.touched_at < before).with_for_update(skip_locked=True)).all()
    for upload in old:
        text = f"the upload of model {upload.name} ({upload.id}) was given up: nothing of it came since {upload.touched_at:%Y-%m-%d %H:%M}"
        record(session, now, "warning", "model_upload_expired", text)
        session.delete(upload)
    return len(old)
