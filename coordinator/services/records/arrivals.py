"""What is written of uploads whose bytes lie in object storage: how far each is, who checks it, and which objects its bytes are in."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.alone import wait_at
from fedcybgd.coordinator.db.models import StoredUpload, UploadPiece
from fedcybgd.coordinator.services.records import keys
from fedcybgd.coordinator.storage.uploads import UploadKey

CHECKED_FOR = timedelta(seconds=10)
"""Whoever checks an upload says so again before this has passed, or is gone."""
ON_ITS_WAY = timedelta(days=1)
"""After so long nobody is sending a piece any more: its process was killed."""


def alone(session: Session, key: UploadKey) -> StoredUpload | None:
    """The upload; nobody else does anything to its place until this transaction ends."""
    wait_at(session.connection(), key.place)
    return find(session, key)


def find(session: Session, key: UploadKey) -> StoredUpload | None:
    return session.scalar(select(StoredUpload).where(_is(key)))


def is_checked(upload: StoredUpload | None, now: datetime) -> bool:
    """By somebody who has said so lately; not for as long as a clock says that was ahead."""
    return upload is not None and upload.checked_until is not None and now < upload.checked_until <= now + CHECKED_FOR


def known(session: Session) -> set[UploadKey]:
    return {UploadKey(*row) for row in session.execute(select(StoredUpload.place, StoredUpload.owner, StoredUpload.digest))}


def untouched(session: Session, before: datetime) -> Sequence[UploadKey]:
    rows = select(StoredUpload.place, StoredUpload.owner, StoredUpload.digest).where(StoredUpload.touched_at < before)
    return [UploadKey(*row) for row in session.execute(rows)]


# ---- pieces


def announce(session: Session, name: str, at: int, size: int, now: datetime) -> None:
    """A piece is about to be written to the storage."""
    session.add(UploadPiece(name=name, at=at, size=size, begun_at=now))


def withdraw(session: Session, name: str) -> bool:
    """Forget a piece that became part of no upload; whether it did not."""
    found = session.execute(
        delete(UploadPiece).where(UploadPiece.name == name, UploadPiece.upload_id.is_(None)).returning(UploadPiece.name)
    )
    return found.first() is not None


def add(session: Session, upload: StoredUpload, name: str, now: datetime) -> bool:
    """Whether a piece that was written is the next of an upload now; not, where it was forgotten meanwhile."""
    piece = session.get(UploadPiece, name, with_for_update=True)
    if piece is None:
        return False
    piece.upload_id = upload.id
    upload.size, upload.touched_at = piece.at + piece.size, now
    return True


def pieces(session: Session, upload: StoredUpload) -> Sequence[str]:
    """Their names, in the order of their bytes."""
    return session.scalars(select(UploadPiece.name).where(UploadPiece.upload_id == upload.id).order_by(UploadPiece.at)).all()


def named(session: Session, now: datetime) -> set[str]:
    """The pieces that there are, and that are being written; what has been written for too long is forgotten."""
    session.execute(delete(UploadPiece).where(UploadPiece.upload_id.is_(None), UploadPiece.begun_at < now - ON_ITS_WAY))
    return set(session.scalars(select(UploadPiece.name)))


# ---- from the first byte to the last


def begin(session: Session, key: UploadKey, now: datetime) -> tuple[StoredUpload, list[str]]:
    """A new upload in place of whatever its place had, and the pieces of that."""
    gone = _forget(session, session.scalars(select(StoredUpload.id).where(StoredUpload.place == key.place)).all())
    upload = StoredUpload(
        id=keys.new_id("sup"), place=key.place, owner=key.owner, digest=key.digest, size=0, kept=False, touched_at=now
    )  # fmt: skip
    session.add(upload)
    session.flush()
    return upload, gone


def check(upload: StoredUpload, word: str, now: datetime) -> None:
    """Somebody checks it from now on."""
    upload.checked_by, upload.checked_until, upload.touched_at = word, now + CHECKED_FOR, now


def still_checks(session: Session, key: UploadKey, word: str, now: datetime) -> bool:
    """Whether it is this request that checks it; then it goes on doing so."""
    done = session.execute(
        update(StoredUpload)
        .where(_is(key), StoredUpload.checked_by == word)
        .values(checked_until=now + CHECKED_FOR)
        .returning(StoredUpload.id)
    )
    return done.first() is not None


def put_back(session: Session, key: UploadKey, word: str) -> None:
    """Nobody checks it any more, if it was this request that did."""
    session.execute(update(StoredUpload).where(_is(key), StoredUpload.checked_by == word).values(checked_by=None, checked_until=None))


def keep(session: Session, key: UploadKey, word: str, now: datetime) -> Sequence[str] | None:
    """A blob came of it; its pieces, which nobody needs now. None: it is another's to say so, or was discarded."""
    upload = alone(session, key)
    if upload is None or upload.checked_by != word:
        return None
    gone = _forget_pieces(session, [upload.id])
    upload.kept, upload.size, upload.checked_by, upload.checked_until, upload.touched_at = True, 0, None, None, now
    return gone


def discard(session: Session, key: UploadKey, word: str | None = None) -> list[str]:
    """Forget it, or only if this request checks it; its pieces."""
    upload = alone(session, key)
    if upload is None or word not in (None, upload.checked_by):
        return []
    return _forget(session, [upload.id])


def _forget(session: Session, uploads: Collection[str]) -> list[str]:
    gone = _forget_pieces(session, uploads)
    session.execute(delete(StoredUpload).where(StoredUpload.id.in_(uploads)))
    return gone


def _forget_pieces(session: Session, uploads: Collection[str]) -> list[str]:
    return list(session.scalars(delete(UploadPiece).where(UploadPiece.upload_id.in_(uploads)).returning(UploadPiece.name)))


def _is(key: UploadKey) -> ColumnElement[bool]:
    return (StoredUpload.place == key.place) & (StoredUpload.owner == key.owner) & (StoredUpload.digest == key.digest)
