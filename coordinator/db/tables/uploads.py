"""Uploads whose bytes lie in object storage."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import DIGEST, KEY, Base, UtcDateTime


class StoredUpload(Base):
    """How far somebody has got with an upload, or that a blob came of it."""

    __tablename__ = "upload"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    place: Mapped[str] = mapped_column(String(80))
    """what it is for: an assignment, or a file of a model upload"""
    owner: Mapped[str] = mapped_column(KEY)
    digest: Mapped[str] = mapped_column(DIGEST)
    size: Mapped[int] = mapped_column(BigInteger)
    """bytes that have arrived; 0 once a blob came of them"""
    kept: Mapped[bool]
    """a blob came of it"""
    checked_by: Mapped[str | None] = mapped_column(KEY)
    """the word of the request that checks it; null: none does"""
    checked_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """it is renewed; afterwards whoever checked it is gone"""
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)

    __table_args__ = (Index("ix_upload_place", "place", "owner", "digest", unique=True),)


class UploadPiece(Base):
    """An object with bytes of an upload. The row is there before the object: an object that no row names is nobody's."""

    __tablename__ = "upload_piece"
    name: Mapped[str] = mapped_column(String(120), primary_key=True)
    """of the object, under uploads/"""
    upload_id: Mapped[str | None] = mapped_column(ForeignKey("upload.id"), index=True)
    """null: it is still on its way to the storage"""
    at: Mapped[int] = mapped_column(BigInteger)
    """where in the upload it begins"""
    size: Mapped[int] = mapped_column(BigInteger)
    begun_at: Mapped[datetime] = mapped_column(UtcDateTime)
