"""What daemon and training process say to each other: one JSON object a line."""

from typing import Literal

from pydantic import BaseModel

from shared.protocol import Progress, ReturnReason, TrainMetrics, TrainSettings
from shared.tables import Format


class DataSource(BaseModel):
    """Where the agent's rows are."""

    path: str
    format: Format | None = None
    columns: dict[str, str] = {}


class LocalShard(BaseModel):
    block: str
    digest: str
    codec: str
    path: str


class TrainRequest(BaseModel):
    """One visit, everything local: no network is needed to do it."""

    assignment_id: str
    files: dict[str, str]
    """name → path, of configuration and tokenizer"""
    model_key: str
    """same key: same configuration, so that blocks in memory may stay"""
    shards: list[LocalShard]
    train: TrainSettings
    data: DataSource
    delta_path: str


class Command(BaseModel):
    """Daemon to training process."""

    op: Literal["train", "stop"]
    request: TrainRequest | None = None


class TrainerEvent(BaseModel):
    """Training process to daemon."""

    event: Literal["ready", "progress", "done", "failed", "stopped"]
    progress: Progress | None = None
    metrics: TrainMetrics | None = None
    reason: ReturnReason | None = None
    message: str = ""
