"""The tables. Migrations build them; a test compares the two."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import Base, UtcDateTime

KEY = String(40)
DIGEST = String(64)


class OperatorKey(Base):
    """The operator's key, as a hash."""

    __tablename__ = "operator_key"
    id: Mapped[int] = mapped_column(primary_key=True)
    key_hash: Mapped[str] = mapped_column(DIGEST, unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Instance(Base):
    """Who this coordinator is, to those who know it: one row, made once."""

    __tablename__ = "instance"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class EnrolmentToken(Base):
    __tablename__ = "enrolment_token"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    token_hash: Mapped[str] = mapped_column(DIGEST, unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Agent(Base):
    __tablename__ = "agent"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    key_hash: Mapped[str] = mapped_column(DIGEST, unique=True)
    state: Mapped[str] = mapped_column(String(20))
    device: Mapped[dict[str, Any]]
    limits: Mapped[dict[str, Any]]
    """memory and bandwidth as it declared them last"""
    version: Mapped[str] = mapped_column(String(40))
    enrolled_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_error: Mapped[str | None] = mapped_column(Text)
    last_error_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Model(Base):
    """A base model, split into blocks."""

    __tablename__ = "model"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    source: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(20))
    """adding, ready or failed"""
    reason: Mapped[str | None] = mapped_column(Text)
    config: Mapped[dict[str, Any]]
    files: Mapped[list[dict[str, Any]]]
    blocks: Mapped[list[dict[str, Any]]]
    left_out: Mapped[list[str]]
    num_parameters: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Run(Base):
    __tablename__ = "run"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"))
    spec: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(20), index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    prepared: Mapped[bool] = mapped_column(default=False)
    files: Mapped[list[dict[str, Any]]]
    """configuration and tokenizer as agents get them: name, digest, size"""
    trained_blocks: Mapped[list[str]]
    participants: Mapped[list[str]]
    """ids of the agents that take part: those of the start, then those who came later"""
    waits_for_agents: Mapped[bool] = mapped_column(default=False)
    """it is paused because nobody was left to ask, and goes on by itself when somebody is"""
    rounds_total: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Block(Base):
    """A block of a run, at its present version."""

    __tablename__ = "block"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    position: Mapped[int]
    kind: Mapped[str] = mapped_column(String(20))
    version: Mapped[int] = mapped_column(default=0)
    digest: Mapped[str] = mapped_column(DIGEST)
    size: Mapped[int] = mapped_column(BigInteger)
    num_parameters: Mapped[int] = mapped_column(BigInteger)
    tensors: Mapped[list[dict[str, Any]]]
    """the trainable ones: name, shape"""
    influence: Mapped[float | None]
    """of a block of layers, on the calibration rows"""


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


class Fidelity(Base):
    """How faithful an emulator was, as measured on the calibration rows."""

    __tablename__ = "fidelity"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    block: Mapped[str] = mapped_column(String(100), primary_key=True)
    plan: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    """digest of the codecs"""
    codecs: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Round(Base):
    __tablename__ = "round"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    cycle: Mapped[int]
    blocks: Mapped[list[str]]
    """the visited ones: one, or as many as a wave has"""
    state: Mapped[str] = mapped_column(String(20))
    loss_before: Mapped[float | None]
    loss_after: Mapped[float | None]
    """held-out loss of the real model on the calibration rows, before and after the round"""
    loss_failed: Mapped[dict[str, Any] | None]
    """code and message, where one of the two could not be measured"""
    opened_at: Mapped[datetime] = mapped_column(UtcDateTime)
    closed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Assignment(Base):
    __tablename__ = "assignment"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    round: Mapped[int]
    block: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    """attempts and predecessors of this visit that came to nothing"""
    meant_for: Mapped[str | None] = mapped_column(KEY)
    excluded: Mapped[list[str]]
    """ids of agents that are not asked (again) in this round"""
    agent_id: Mapped[str | None] = mapped_column(ForeignKey("agent.id"))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    waiting_since: Mapped[datetime] = mapped_column(UtcDateTime)
    leased_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    submitted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    judged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    manifest: Mapped[dict[str, Any]]
    train: Mapped[dict[str, Any]]
    progress: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any] | None]
    delta_digest: Mapped[str | None] = mapped_column(DIGEST)
    delta_size: Mapped[int | None] = mapped_column(BigInteger)
    applied: Mapped[bool] = mapped_column(default=False)
    """its delta is part of the present blocks"""

    __table_args__ = (
        Index("ix_assignment_state_agent", "state", "agent_id"),
        Index("ix_assignment_run_round", "run_id", "round"),
        Index("ix_assignment_agent", "agent_id"),
    )


class Evaluation(Base):
    """Held-out metrics of the model after a number of rounds."""

    __tablename__ = "evaluation"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    after_rounds: Mapped[int] = mapped_column(primary_key=True)
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Job(Base):
    """Heavy work outside the web process."""

    __tablename__ = "job"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    lane: Mapped[str] = mapped_column(String(20))
    subject: Mapped[str] = mapped_column(KEY, index=True)
    """id of the run or model that it is for"""
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(20))
    """queued, running, done, failed or skipped"""
    tries: Mapped[int] = mapped_column(default=0)
    result: Mapped[dict[str, Any] | None]
    error_code: Mapped[str | None] = mapped_column(String(60))
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_job_state_lane", "state", "lane", "created_at"),)


class Exposure(Base):
    """The ledger of which agent has received which block at which version and codec."""

    __tablename__ = "exposure"
    agent_id: Mapped[str] = mapped_column(ForeignKey("agent.id"), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    block: Mapped[str] = mapped_column(String(100), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    codec: Mapped[str] = mapped_column(String(20), primary_key=True)
    first_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Traffic(Base):
    """Bytes that crossed the wire, per round, agent, direction and kind."""

    __tablename__ = "traffic"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agent.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20), primary_key=True)
    """shard, patch, file (down) or delta (up)"""
    bytes: Mapped[int] = mapped_column(BigInteger)


class Event(Base):
    """What happened, for the people who watch."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    level: Mapped[str] = mapped_column(String(10))
    """info, warning or error"""
    code: Mapped[str] = mapped_column(String(60))
    message: Mapped[str] = mapped_column(Text)
    run_id: Mapped[str | None] = mapped_column(KEY, index=True)
    agent_id: Mapped[str | None] = mapped_column(KEY)

    __table_args__ = (Index("ix_event_level", "level", "id"),)


class Garbage(Base):
    """A blob that nothing needs. It is deleted once that has been so for long enough."""

    __tablename__ = "garbage"
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    since: Mapped[datetime] = mapped_column(UtcDateTime)
    written: Mapped[float]
    """when its file was written, as the store told it: when it is written again, it is young again"""
    jobs: Mapped[list[str]]
    """ids of the jobs that were unfinished then: it may be what they have written, so it stays as long as one of them is"""


class HeldOut(Base):
    """Uploaded held-out files by digest."""

    __tablename__ = "held_out"
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
