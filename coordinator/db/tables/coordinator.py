"""The coordinator itself: who it is, who operates it, what happened."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, Text, true
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import DIGEST, KEY, Base, UtcDateTime


class Operator(Base):
    """Whoever steers this coordinator: a name, what it may do, and the hash of its key."""

    __tablename__ = "operator"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    role: Mapped[str] = mapped_column(String(20))
    key_hash: Mapped[str] = mapped_column(DIGEST, unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    rotated_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """of the key; null: it holds until it is rotated or revoked"""
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """to a minute"""


class Login(Base):
    """A browser in which an operator is logged in at /admin; whoever logs out, or loses the key, has none."""

    __tablename__ = "login"
    token_hash: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    """of the cookie, which is a random secret and nothing else"""
    operator_id: Mapped[str] = mapped_column(ForeignKey("operator.id"), index=True)
    began_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Instance(Base):
    """Who this coordinator is, to those who know it: one row, made once."""

    __tablename__ = "instance"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    store: Mapped[str | None] = mapped_column(KEY)
    """id of the directory with its blobs; null: nobody has looked yet, or needs to"""
    webhook_secret: Mapped[str | None] = mapped_column(DIGEST)
    """of the secret that webhooks are signed with, where coordinators may have one each; null: nobody has looked yet, or needs to"""


class Replica(Base):
    """A process that does work of this database, a coordinator or an engine elsewhere, and when it lived last."""

    __tablename__ = "replica"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    home: Mapped[str] = mapped_column(KEY, index=True)
    """id of the home that it holds: the next one there knows that this one is gone; of an engine elsewhere its own id"""
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    waiting_claims: Mapped[int] = mapped_column(server_default="0")
    """when it was seen last"""
    version: Mapped[str | None] = mapped_column(String(40))
    """of the program; null: of one that did not say so"""
    serves: Mapped[bool] = mapped_column(server_default=true())
    """it is a coordinator: agents are served, and leases looked after"""
    lanes: Mapped[list[str] | None]
    """of which it does jobs; null: it is of a version that did all"""


class Event(Base):
    """What happened, for the people who watch."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    level: Mapped[str] = mapped_column(String(10))
    """info, warning or error"""
    code: Mapped[str] = mapped_column(String(60))
    message: Mapped[str] = mapped_column(Text)
    run_id: Mapped[str | None] = mapped_column(KEY)
    agent_id: Mapped[str | None] = mapped_column(KEY)

    __table_args__ = (
        Index("ix_event_level", "level", "id"),
        Index("ix_event_run", "run_id", "id"),
        Index("ix_event_agent", "agent_id", "id"),
        Index("ix_event_code", "code", "id"),
    )


class SigningKey(Base):
    """A key that the coordinators on this database sign with: the newest one, and those before it. The private half is sealed."""

    __tablename__ = "signing_key"
    fingerprint: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    public: Mapped[str] = mapped_column(String(60))
    """base64"""
    sealed: Mapped[str] = mapped_column(Text)
    """base64 of nonce and ciphertext: only who has the secret of a home can open it, and no backup has that"""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
