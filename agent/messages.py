"""What daemon and training process say to each other: one JSON object a line."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedcybgd.shared.contract.assignments import Progress, ReturnReason
from fedcybgd.shared.contract.training import TrainMetrics, TrainSettings
from fedcybgd.shared.contract.words import DeltaCodec
from fedcybgd.shared.files.table_format import TableFormat


class DataSource(TableFormat):
    """Where the agent's rows are, and how to read them."""

    path: str
    columns: dict[str, str] = Field(default_factory=dict)
    images: str | None = None
    """folder of the images that rows name by path"""
    tell_labels: bool = False
    """whether the coordinator is told how many rows of each label a visit trained on"""


class LocalPatch(BaseModel):
    """A step from one shard to the next; `digest` and `target` are those of the next."""

    kind: Literal["difference", "delta"]
    path: str
    weight: float
    digest: str
    target: str


class LocalShard(BaseModel):
    """Where a shard is, or is to be, and what it can be made of: its packed form, or an older shard and patches."""

    block: str
    digest: str
    codec: str
    path: str
    size: int = 0
    packed: str | None = None
    base: str | None = None
    patches: list[LocalPatch] = []


class TrainingOptions(BaseModel):
    """How training trades time for memory; none of it changes what is learned."""

    model_config = ConfigDict(extra="forbid")

    checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="compute activations above the trained block twice instead of keeping them; auto: when they are large"
    )
    prefix_cache: Literal["auto", "off", "memory", "disk"] = Field(
        "auto", description="compute what enters the trained block once a visit; auto: when rows are used more than once"
    )
    chunked_logits: Literal["auto", "on", "off"] = Field(
        "auto", description="compute a language model's logits in chunks; auto: from 8 million logits a batch"
    )
    graphs: Literal["auto", "off"] = Field(
        "off", description="have a card repeat forward and backward pass as a CUDA graph; auto: for batches of a shape that comes often"
    )


class Bounds(BaseModel):
    """What the owner's policy asks of a visit that is known only when its rows and tensors are."""

    steps: int
    """at the most"""
    seconds: float
    """of training; the process is killed then"""
    rows: int
    """different ones, at the least"""
    never: list[str]
    """patterns of blocks that are never trained"""


class TrainRequest(BaseModel):
    """One visit, everything local: no network is needed to do it."""

    assignment_id: str
    visit: str = ""
    """which visit this is: a stop is for one, and so is every event"""
    files: dict[str, str]
    """name → path, of configuration and tokenizer"""
    model_key: str
    """same key: same configuration, so that blocks in memory may stay"""
    shards: list[LocalShard]
    dropped: list[str] = []
    """blocks of layers that this emulator does without"""
    bounds: Bounds | None = None
    stall_s: float | None = None
    """seconds without progress after which the coordinator takes the visit back"""
    train: TrainSettings
    data: DataSource
    disk_bytes: int | None = None
    """what the rows may take of the disk once they are encoded, with their prefix cache; None: whatever they do"""
    delta_path: str
    delta_codec: DeltaCodec = "float32"
    residuals: dict[str, str] = {}
    """block → file of what the codec left out of its last delta"""
    new_residuals: str | None = None
    """directory for what it leaves out of this one; None: nothing is kept"""


class Command(BaseModel):
    """Daemon to training process."""

    op: Literal["train", "stop"]
    request: TrainRequest | None = None
    visit: str | None = None
    """which visit is to stop; None: whichever there is"""


class Facts(BaseModel):
    """What may be told of a failure to anybody: numbers, and names of our own; never what a row or a setting holds."""

    error: str | None = None
    """class of the exception"""
    place: str | None = None
    """file and line of our own code"""
    phase: str | None = None
    step: int | None = None
    row: int | None = None
    field: str | None = None
    """of the task, not the owner's column"""

    def text(self) -> str:
        place = f" at {self.place}" if self.place else ""
        known = [f"{self.error or 'error'}{place}"]
        known += [f"{name} {value}" for name in ("phase", "step", "row", "field") if (value := getattr(self, name)) is not None]
        return ", ".join(known)


class TrainerEvent(BaseModel):
    """Training process to daemon."""

    event: Literal["walled", "ready", "alive", "progress", "done", "failed", "stopped"]
    visit: str = ""
    progress: Progress | None = None
    metrics: TrainMetrics | None = None
    cpu_s: float | None = None
    """processor seconds that the process has used, when it says that it lives"""
    reason: ReturnReason | None = None
    message: str = ""
    """for the agent's own log: it may quote a row"""
    facts: Facts | None = None
    spoilt: bool = False
    """that this process fails in every later visit, too: another one is started"""
    device: str = ""
    """when it is ready: what it trains on; empty where it found nothing, which `message` explains"""
