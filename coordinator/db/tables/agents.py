"""Agents: who they are, and what they say of runs."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import DIGEST, KEY, Base, UtcDateTime
from fedcybgd.coordinator.db.typed import Typed
from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo


class EnrolmentToken(Base):
    __tablename__ = "enrolment_token"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    token_hash: Mapped[str] = mapped_column(DIGEST, unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    agent_id: Mapped[str | None] = mapped_column(ForeignKey("agent.id"))
    """for whom it is, where an agent that is there gets another key; null: for new ones"""
    uses: Mapped[int] = mapped_column(default=1)
    """how many may enrol with it"""
    used: Mapped[int] = mapped_column(default=0)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """the last time"""
    withdrawn_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_enrolment_token_created", "created_at", "id"),)


class Agent(Base):
    __tablename__ = "agent"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    key_hash: Mapped[str] = mapped_column(DIGEST, unique=True)
    """of its public key, else of the secret that it sends"""
    public_key: Mapped[str | None] = mapped_column(String(60))
    """Ed25519, in base64; null: it does not sign its requests yet"""
    key_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """null: its key is good for good"""
    state: Mapped[str] = mapped_column(String(20))
    device: Mapped[DeviceInfo] = mapped_column(Typed(DeviceInfo))
    limits: Mapped[DeclaredLimits] = mapped_column(Typed(DeclaredLimits))
    """memory and bandwidth as it declared them last"""
    version: Mapped[str] = mapped_column(String(40))
    enrolled_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    daemon: Mapped[str | None] = mapped_column(KEY)
    """the word of the daemon that asks with its key; null: it says none"""
    former_daemons: Mapped[dict[str, bool]] = mapped_column(Typed(dict[str, bool]), default=dict)
    """words of the last ones before it → whether it was said that one is still there"""
    strikes: Mapped[int] = mapped_column(default=0)
    """visits at which it was passed over since it last sent a good delta"""
    quarantines: Mapped[int] = mapped_column(default=0)
    """how often it was in quarantine since then"""
    quarantined_until: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    """until then it is asked for nothing; null: it is not in quarantine"""
    last_error: Mapped[str | None] = mapped_column(Text)
    last_error_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class SpentSignature(Base):
    """A request of an agent that has changed something: for the coordinators that have not heard it themselves."""

    __tablename__ = "spent_signature"
    key_id: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    nonce: Mapped[str] = mapped_column(String(64), primary_key=True)
    created: Mapped[int] = mapped_column(BigInteger)
    """as the agent has signed it, in seconds of Unix time"""
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)

    __table_args__ = (Index("ix_spent_signature_created", "key_id", "created"),)


class Readiness(Base):
    """What an agent said of a run last, and what it is not asked for."""

    __tablename__ = "readiness"
    agent_id: Mapped[str] = mapped_column(ForeignKey("agent.id"), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    fits: Mapped[bool | None]
    """whether its data fit; null: it has not said"""
    reason: Mapped[str | None] = mapped_column(String(40))
    rows: Mapped[int | None] = mapped_column(BigInteger)
    """as many or more, or exactly as many"""
    exact: Mapped[bool] = mapped_column(default=False)
    refused: Mapped[list[str]]
    """ids of the assignments that it is not asked for until it says that its data fit"""
    at: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_readiness_run", "run_id"),)
