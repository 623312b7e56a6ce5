"""Base models and the runs over them, with their blocks as they are now."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import DIGEST, KEY, Base, UtcDateTime
from fedcybgd.coordinator.db.typed import Typed
from fedcybgd.coordinator.domain.model_blocks import StoredBlock, TensorShape
from fedcybgd.coordinator.domain.model_files import ModelUploadFile
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.measured import Conclusion
from fedcybgd.shared.contract.words import JsonObject


class Model(Base):
    """A base model, split into blocks."""

    __tablename__ = "model"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    source: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(20))
    """adding, ready or failed"""
    reason: Mapped[str | None] = mapped_column(Text)
    config: Mapped[JsonObject] = mapped_column(Typed(JsonObject))
    """the contents of its config.json"""
    files: Mapped[list[FileRef]] = mapped_column(Typed(list[FileRef]))
    blocks: Mapped[list[StoredBlock]] = mapped_column(Typed(list[StoredBlock]))
    left_out: Mapped[list[str]]
    num_parameters: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ModelUpload(Base):
    """A model that is on its way from another machine. It goes when the model was added, and when nobody goes on with it."""

    __tablename__ = "model_upload"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    """made of name and files: who asks again for the same goes on with it"""
    name: Mapped[str] = mapped_column(String(100))
    begun_by: Mapped[str] = mapped_column(String(100))
    """name of the operator"""
    files: Mapped[list[ModelUploadFile]] = mapped_column(Typed(list[ModelUploadFile]))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """when somebody last sent something of it"""


class HeldOut(Base):
    """Uploaded held-out files by digest."""

    __tablename__ = "held_out"
    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Run(Base):
    __tablename__ = "run"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"))
    spec: Mapped[RunFile] = mapped_column(Typed(RunFile))
    state: Mapped[str] = mapped_column(String(20), index=True)
    state_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """null: it came to be so before that was written down"""
    reason: Mapped[str | None] = mapped_column(Text)
    prepared: Mapped[bool] = mapped_column(default=False)
    files: Mapped[list[FileRef]] = mapped_column(Typed(list[FileRef]))
    """configuration and tokenizer as agents get them: name, digest, size"""
    notes: Mapped[list[str]]
    """what was found when it was prepared: which parts of the model were made afresh, and why"""
    trained_blocks: Mapped[list[str]]
    participants: Mapped[list[str]] = mapped_column(deferred=True)
    """ids of the agents that take part: those of the start, then those who came later"""
    without: Mapped[list[str]] = mapped_column(default=list)
    """ids of the agents whose deltas were taken out: they take no part any more"""
    waits_for_agents: Mapped[bool] = mapped_column(default=False)
    """it is paused because nobody was left to ask, and goes on by itself when somebody is"""
    rounds_total: Mapped[int] = mapped_column(default=0)
    rounds_done: Mapped[int] = mapped_column(default=0)
    """the closed ones: the number of the round that is open, or comes next"""
    conclusion: Mapped[Conclusion | None] = mapped_column(Typed(Conclusion))
    """with which candidate it ended; None: it had none but its last version"""
    anchor_of: Mapped[str | None] = mapped_column(KEY, index=True)
    """the run whose head it trains alone, to be measured against"""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_run_created", "created_at", "id"),)


class Block(Base):
    """A block of a run, at its present version."""

    __tablename__ = "block"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    position: Mapped[int]
    kind: Mapped[str] = mapped_column(String(20))
    version: Mapped[int] = mapped_column(default=0)
    changes: Mapped[int] = mapped_column(default=0)
    """how many rounds have changed it; unlike the version, it falls when rounds are undone"""
    digest: Mapped[str] = mapped_column(DIGEST)
    size: Mapped[int] = mapped_column(BigInteger)
    num_parameters: Mapped[int] = mapped_column(BigInteger)
    tensors: Mapped[list[TensorShape]] = mapped_column(Typed(list[TensorShape]))
    """the trainable ones: name, shape"""
    influence: Mapped[float | None]
    """of a block of layers, on the calibration rows"""
    importance: Mapped[float | None]
    """of a visited block, on the calibration rows, before the first round; null: the order of cycles does not go by it, or cannot"""
