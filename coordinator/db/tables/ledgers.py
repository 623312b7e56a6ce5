"""The ledgers: what was sent to whom."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import Base, UtcDateTime


class Exposure(Base):
    """The ledger of which agent has received which block at which version and codec."""

    __tablename__ = "exposure"
    agent_id: Mapped[str] = mapped_column(ForeignKey("agent.id"), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    block: Mapped[str] = mapped_column(String(100), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    codec: Mapped[str] = mapped_column(String(20), primary_key=True)
    first_at: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_exposure_first", "first_at"), Index("ix_exposure_agent", "agent_id", "first_at"))


class Traffic(Base):
    """Bytes that crossed the wire, per round, agent, direction and kind."""

    __tablename__ = "traffic"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agent.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20), primary_key=True)
    """shard, patch, file (down) or delta (up)"""
    bytes: Mapped[int] = mapped_column(BigInteger)


class TrafficTotal(Base):
    """The sums of `Traffic` by run and kind, kept as it grows."""

    __tablename__ = "traffic_total"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
