"""Rounds and the assignments that they are made of."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from fedcybgd.coordinator.db.base import DIGEST, KEY, Base, UtcDateTime
from fedcybgd.coordinator.db.typed import Typed
from fedcybgd.coordinator.domain.band import BlockDelta
from fedcybgd.coordinator.domain.seat import Seat, called
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.manifests import Manifest
from fedcybgd.shared.contract.measured import Failure
from fedcybgd.shared.contract.training import TrainMetrics, TrainSettings


class Round(Base):
    __tablename__ = "round"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    cycle: Mapped[int]
    seats: Mapped[list[Seat]] = mapped_column(Typed(list[Seat]))
    """by their numbers"""
    blocks: Mapped[list[str]]
    """those that it is said to be of: the visited ones"""
    state: Mapped[str] = mapped_column(String(20))
    loss_before: Mapped[float | None]
    loss_after: Mapped[float | None]
    """held-out loss of the real model on the calibration rows, before and after the round"""
    loss_failed: Mapped[Failure | None] = mapped_column(Typed(Failure))
    """why, where one of the two could not be measured"""
    opened_at: Mapped[datetime] = mapped_column(UtcDateTime)
    closed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class StoredManifest(Base):
    """A manifest, once for all assignments that have the same."""

    __tablename__ = "manifest"
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    """of its JSON"""
    content: Mapped[Manifest] = mapped_column(Typed(Manifest))


class Assignment(Base):
    __tablename__ = "assignment"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    round: Mapped[int]
    seat: Mapped[int]
    """which of the round's; one that was rejected is followed by another one of the same seat"""
    blocks: Mapped[list[str]]
    """the visited ones"""
    state: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    """attempts and predecessors of this visit that came to nothing"""
    failed: Mapped[dict[str, int]] = mapped_column(Typed(dict[str, int]), default=dict)
    """id of an agent → how often it failed at this visit, or gave it up"""
    meant_for: Mapped[str | None] = mapped_column(KEY)
    excluded: Mapped[list[str]]
    """ids of agents that are not asked (again) in this round"""
    agent_id: Mapped[str | None] = mapped_column(ForeignKey("agent.id"))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    progressed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """when the agent that has it, or had it, was last seen to get on"""
    patience_s: Mapped[float | None]
    """for how long it may show no progress"""
    ends_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """when the attempt is over, whatever it shows of progress"""
    waiting_since: Mapped[datetime] = mapped_column(UtcDateTime)
    leased_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    submitted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    judged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    manifest_digest: Mapped[str | None] = mapped_column(ForeignKey("manifest.digest"))
    """what its agent got; null while nobody has it, and once it has been over for long"""
    train: Mapped[TrainSettings] = mapped_column(Typed(TrainSettings))
    progress: Mapped[Progress | None] = mapped_column(Typed(Progress))
    metrics: Mapped[TrainMetrics | None] = mapped_column(Typed(TrainMetrics))
    delta_digest: Mapped[str | None] = mapped_column(DIGEST)
    delta_size: Mapped[int | None] = mapped_column(BigInteger)
    measured: Mapped[dict[str, BlockDelta] | None] = mapped_column(Typed(dict[str, BlockDelta]))
    """of its delta, by block"""
    applied: Mapped[bool] = mapped_column(default=False)
    """its delta is part of the present blocks"""

    stored_manifest: Mapped["StoredManifest | None"] = relationship()

    @property
    def manifest(self) -> Manifest:
        """What its agent got. Only what somebody has, or had to the end a short while ago, has one."""
        assert self.stored_manifest is not None, "nobody has it"
        return self.stored_manifest.content

    @property
    def block(self) -> str:
        """The first of its blocks: by it fidelity is measured, and agents that know of one block only call it."""
        return self.blocks[0]

    @property
    def called(self) -> str:
        return called(self.blocks)

    __table_args__ = (
        Index("ix_assignment_state_agent", "state", "agent_id"),
        Index("ix_assignment_run_round", "run_id", "round"),
        Index("ix_assignment_agent", "agent_id", "leased_at", "id"),
        Index("ix_assignment_manifest", "manifest_digest"),
    )
