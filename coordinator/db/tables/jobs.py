"""Heavy work outside the web process."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import KEY, Base, UtcDateTime
from fedcybgd.coordinator.db.typed import Typed


class Job(Base):
    """Heavy work outside the web process."""

    __tablename__ = "job"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    lane: Mapped[str] = mapped_column(String(20))
    subject: Mapped[str] = mapped_column(KEY, index=True)
    """id of the run or model that it is for"""
    payload: Mapped[dict[str, Any]] = mapped_column(Typed(dict[str, Any]))
    state: Mapped[str] = mapped_column(String(20))
    """queued, running, done, failed or skipped"""
    tries: Mapped[int] = mapped_column(default=0)
    result: Mapped[dict[str, Any] | None] = mapped_column(Typed(dict[str, Any]))
    error_code: Mapped[str | None] = mapped_column(String(60))
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_job_state_lane", "state", "lane", "created_at"),)
