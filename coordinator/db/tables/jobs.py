"""Heavy work outside the web process."""

from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import KEY, Base, UtcDateTime
from fedcybgd.coordinator.db.typed import Typed
from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.domain.jobs.registry import JOBS
from fedcybgd.shared.contract.words import JsonObject


class Job(Base):
    """Heavy work outside the web process. What it takes and gives are of the types of its kind."""

    __tablename__ = "job"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    lane: Mapped[str] = mapped_column(String(20))
    subject: Mapped[str] = mapped_column(KEY)
    """id of the run or model that it is for"""
    payload_json: Mapped[JsonObject | None] = mapped_column("payload", Typed(JsonObject))
    """null once it has been finished for long"""
    state: Mapped[str] = mapped_column(String(20))
    """queued, running, done, failed or skipped"""
    tries: Mapped[int] = mapped_column(default=0)
    """how often it was begun: with its owner, the fence against late results"""
    deaths: Mapped[int] = mapped_column(default=0)
    """how often its engine died of it, or had to be ended"""
    result_json: Mapped[JsonObject | None] = mapped_column("result", Typed(JsonObject))
    error_code: Mapped[str | None] = mapped_column(String(60))
    error: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str | None] = mapped_column(KEY)
    """id of the replica that does it, or did it last"""
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    moved_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """when its engine was last seen to use the processor"""
    cpu_s: Mapped[float] = mapped_column(default=0.0)
    """processor seconds that its engine has used for it"""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (
        Index("ix_job_state_lane", "state", "lane", "created_at"),
        Index("ix_job_subject", "subject", "state", "kind"),
        Index("ix_job_ended", "kind", "ended_at"),
        Index("ix_job_kept", "ended_at", sqlite_where=text("payload IS NOT NULL"), postgresql_where=text("payload IS NOT NULL")),
    )

    @property
    def payload(self) -> BaseModel:
        assert self.payload_json is not None, "what is finished is not asked what it was to do"
        return JOBS[JobKind(self.kind)].payload.model_validate(self.payload_json, extra="ignore")

    @payload.setter
    def payload(self, value: BaseModel) -> None:
        self.payload_json = _checked(value, JOBS[JobKind(self.kind)].payload)

    @property
    def result(self) -> BaseModel | None:
        found = self.result_json
        return None if found is None else JOBS[JobKind(self.kind)].result.model_validate(found, extra="ignore")

    @result.setter
    def result(self, value: BaseModel) -> None:
        self.result_json = _checked(value, JOBS[JobKind(self.kind)].result)


def _checked(value: BaseModel, of: type[BaseModel]) -> JsonObject:
    if not isinstance(value, of):
        raise TypeError(f"{type(value).__name__} is not of the type of this job, {of.__name__}")
    return value.model_dump(mode="json")
