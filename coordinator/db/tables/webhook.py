"""How far the webhook has come."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import DIGEST, Base, UtcDateTime


class Webhook(Base):
    """Of a receiver, by the digest of its address: what it was told last. One that was never told anything begins with what happens next."""

    __tablename__ = "webhook"
    address: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    told: Mapped[int]
    """id of the last event that it has taken, or lost"""
    tries: Mapped[int] = mapped_column(default=0)
    """that failed in a row, at the event after that"""
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    next_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """when it is told again; while a coordinator is at it, when another one may be"""
