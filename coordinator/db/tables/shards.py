"""Blobs that stand for blocks: shards in their codecs, the patches between them, and what nothing needs any more."""

from datetime import datetime

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import DIGEST, Base, UtcDateTime


class EncodedShard(Base):
    """A block in a codec, made once: the same source and codec always give the same bytes."""

    __tablename__ = "encoded_shard"
    source: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    """digest of the exact shard"""
    codec: Mapped[str] = mapped_column(String(20), primary_key=True)
    digest: Mapped[str] = mapped_column(DIGEST)
    size: Mapped[int] = mapped_column(BigInteger)
    packed_digest: Mapped[str] = mapped_column(DIGEST)
    packed_size: Mapped[int] = mapped_column(BigInteger)


class Patch(Base):
    """A step from one shard to the next of the same block and codec."""

    __tablename__ = "patch"
    target: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    base: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    digest: Mapped[str] = mapped_column(DIGEST)
    size: Mapped[int] = mapped_column(BigInteger)
    weight: Mapped[float]


class Garbage(Base):
    """A blob that nothing needs. It is deleted once that has been so for long enough."""

    __tablename__ = "garbage"
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    since: Mapped[datetime] = mapped_column(UtcDateTime)
    written: Mapped[float]
    """when its file was written, as the store told it: when it is written again, it is young again"""
    jobs: Mapped[list[str]]
    """ids of the jobs that were unfinished then: it may be what they have written, so it stays as long as one of them is"""
