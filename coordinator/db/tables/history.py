"""The history of the blocks of runs: every version, and what made it."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import DIGEST, Base, UtcDateTime
from fedcybgd.coordinator.db.typed import Typed
from fedcybgd.coordinator.domain.jobs.candidates import AverageTerm, HeadCalibration
from fedcybgd.coordinator.domain.jobs.payloads import Change


class BlockVersion(Base):
    """A version of a block of a run. Rows are added with the version, and stay; retention only says of them what is kept."""

    __tablename__ = "block_version"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    block: Mapped[str] = mapped_column(String(100), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    origin: Mapped[str] = mapped_column(String(20))
    """base, applied, restored, averaged, best, calibrated or found"""
    digest: Mapped[str] = mapped_column(DIGEST)
    """of the exact shard"""
    size: Mapped[int] = mapped_column(BigInteger)
    parent: Mapped[int | None]
    """the version that it was made of, or whose bytes it has"""
    round: Mapped[int | None]
    change: Mapped[Change | None] = mapped_column(Typed(Change))
    """what was added to the parent, as the engine was told"""
    average: Mapped[list[AverageTerm] | None] = mapped_column(Typed(list[AverageTerm]))
    """the versions that it is the mean of, or the one that it is again"""
    calibration: Mapped[HeadCalibration | None] = mapped_column(Typed(HeadCalibration))
    """what was done to the head that is its parent"""
    velocity: Mapped[str | None] = mapped_column(DIGEST)
    """of what the outer optimizer carries on from it; null: there is none, or no round was yet"""
    kept: Mapped[bool]
    """it can be made again: its deltas, or its bytes, are kept"""
    exact: Mapped[bool]
    """its bytes are kept"""
    made_at: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_block_version_kept", "kept", "run_id"),)
