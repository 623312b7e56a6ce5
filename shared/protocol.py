"""What travels between agent and coordinator: the messages of `/v1`, as pydantic models."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from shared.digests import Digest
from shared.plain import PlainText

API = "/v1"
MAX_WAIT_S = 60.0
OFFERS = "FedCyBGD-Offers"
"""Heading of the answer to a claim; another value means that there are other runs, of which the agent should say whether its data fit."""
COORDINATOR = "FedCyBGD-Coordinator"
"""Heading of every answer: the id that the coordinator's database got when it was made."""
MOST_STEPS = 100_000
"""Local steps of a visit: an agent takes no visit that has more."""
SHARD_CODECS = "exact, int8, int4 and pruned:N (N percent of the width removed, 1 to 90)"


def _known_codec(text: str) -> str:
    if not re.fullmatch(r"exact|int8|int4|pruned:([1-9]|[1-8][0-9]|90)", text):
        raise ValueError(f"unknown codec {text!r}; known are {SHARD_CODECS}")
    return text


Codec = Annotated[str, AfterValidator(_known_codec)]
"""How a block travels and is held. A dropped block has no shard; the manifest lists it."""
DeltaCodec = Literal["float32", "bfloat16", "int8", "int4"]
"""How a delta travels."""
Optimizer = Literal["adamw", "adamw-8bit"]
Task = Literal["text-classification", "causal-lm"]
Precision = Literal["float32", "bfloat16", "auto"]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")]
"""A state, a kind: one of our own words."""
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
ID = r"^[a-z]{1,20}_[0-9a-f]{16}$"
Id = Annotated[str, StringConstraints(pattern=ID)]
"""An id that a coordinator made, as in run_0123456789abcdef. It becomes part of paths and URLs, so nothing else is one."""
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Message(BaseModel):
    # NaN and infinity have no place in JSON: whoever stored or showed one would fail at it.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ErrorBody(BaseModel):
    """Every answer that is not 2xx has this body."""

    code: PlainText = Field(description="stable name of the error, for programs")
    message: PlainText = Field(description="what is wrong and what to do, for people")
    detail: dict[str, Any] = Field(default_factory=dict)


# ---- agents ---------------------------------------------------------------------------------------------------------


class DeviceInfo(Message):
    """What an agent says of its device; nothing of its data."""

    kind: PlainText = Field("cpu", max_length=20)
    name: PlainText = Field("", max_length=200)
    cores: int = Field(1, ge=1, lt=2**31)
    memory_bytes: Count = 0
    accelerator_bytes: Count = 0


class EnrolRequest(Message):
    token: str = Field(min_length=8, max_length=200)
    name: Name
    device: DeviceInfo = DeviceInfo()
    version: PlainText = Field("", max_length=40)


class EnrolAnswer(BaseModel):
    agent_id: Id
    name: Name
    key: str = Field(max_length=200, pattern=r"^[!-~]+$", description="shown this once; the coordinator keeps a hash of it only")


class RunOffer(BaseModel):
    """A run that this agent may take part in, with what its data must look like."""

    run_id: Id
    name: Name
    state: Word
    task: Task
    fields: list[str] = Field(description="fields that the agent's columns must supply")
    optional_fields: list[str]
    num_labels: int | None
    label_names: list[str] | None
    max_length: int
    files: list["FileRef"] = Field(description="configuration and tokenizer, served by /v1/runs/{run_id}/files/{name}")


UnfitReason = Literal[
    "not_consented", "data_missing", "data_invalid", "out_of_memory", "memory_limit", "disk_limit", "delta_refused", "manifest_invalid"
]
"""Why an agent takes no work of a run until its owner has mended something."""
MENDABLE_REASONS: frozenset[str] = frozenset(get_args(UnfitReason))


class Readiness(Message):
    """What an agent says of a run that is open to it: facts of a check, nothing of its data."""

    run_id: Id
    fits: bool = Field(description="its owner has tied data to the run, and they fit the task")
    reason: UnfitReason | None = Field(None, description="why not")
    rows: Count | None = Field(None, description="as many or more; exactly as many if `exact`; null: the owner does not say")
    exact: bool = False


class ReadinessReport(Message):
    runs: list[Readiness] = Field(max_length=1000)


class AgentSelf(BaseModel):
    agent_id: Id
    name: Name
    state: Word
    enrolled_at: datetime
    runs: list[RunOffer]


# ---- assignments ----------------------------------------------------------------------------------------------------


class FileRef(BaseModel):
    """A file of the model by its name: configuration, tokenizer, and in an export the weights."""

    name: Name
    digest: Digest
    size: int = Field(ge=0)


class BlobRef(BaseModel):
    """Bytes by their digest."""

    digest: Digest
    size: int = Field(ge=0)


class PatchRef(BlobRef):
    """Bytes that make a shard of an older one, which an agent may hold."""

    kind: Literal["difference", "delta"] = Field(
        description="difference: of two files of one layout, byte by byte; delta: an accepted delta that was added to the block"
    )
    base: Digest = Field(description="the shard that it starts from")
    weight: float = Field(1.0, allow_inf_nan=False, description="of a delta")


class ShardRef(BaseModel):
    """One block at one version in one codec: a safetensors file, and in what forms it can be fetched."""

    block: Name
    version: int = Field(ge=0, lt=2**31)
    codec: Codec
    digest: Digest
    size: int = Field(ge=0)
    packed: BlobRef | None = Field(None, description="the same file in the lossless coding")
    patches: list[PatchRef] = Field(
        default_factory=list, max_length=16, description="steps from older shards to this one, the last step first"
    )


class Manifest(BaseModel):
    """All that makes up one emulator, in the order of the model."""

    files: list[FileRef]
    blocks: list[ShardRef]
    dropped: list[Name] = Field(default_factory=list, description="blocks of layers that this emulator does without")


class ParameterGroup(BaseModel):
    """Blocks that are trained in a visit with one learning rate."""

    blocks: list[Name]
    learning_rate: float = Field(gt=0, le=1e6, allow_inf_nan=False)


class Training(BaseModel):
    """How a visit trains, as the run file says it and as an agent is told it: a field that is added here reaches both."""

    steps: int | None = Field(None, ge=1, le=MOST_STEPS, description="local steps of a visit; instead of `epochs`")
    epochs: float | None = Field(None, gt=0, le=1000, description="local passes over an agent's rows; 1 if neither is given")
    batch_size: int = Field(16, ge=1, le=65536, description="rows or windows of a step")
    warmup_steps: int = Field(5, ge=0, lt=2**31, description="steps over which the learning rate rises at the beginning of each visit")
    weight_decay: float = Field(0.0, ge=0, lt=1, description="of AdamW")
    max_grad_norm: float | None = Field(1.0, gt=0, description="the gradient is scaled down to this norm; null: never")
    precision: Precision = Field("auto", description="auto: bfloat16 where the device computes in it natively, else float32")
    optimizer: Optimizer = Field("adamw", description="adamw-8bit keeps its two moments in 8 bits; agents need bitsandbytes for it")


class TrainSettings(Training):
    """One visit: which blocks are trained, and how."""

    task: Task
    num_labels: int | None = Field(None, ge=1, le=100_000)
    label_names: list[str] | None = Field(None, max_length=100_000)
    groups: list[ParameterGroup] = Field(max_length=10_000)
    max_length: int = Field(ge=1, le=1 << 20, description="tokens a row or window at the most")
    seed: int = Field(ge=0, lt=2**64, description="from (run, round, block), never from the attempt")


class DeclaredLimits(Message):
    """What an agent allows training to take; 0 where it does not say."""

    memory_bytes: Count = 0
    bytes_per_s: Count = Field(0, description="speed of its line")


class ClaimRequest(Message):
    limits: DeclaredLimits = DeclaredLimits()
    runs: list[Annotated[str, StringConstraints(max_length=100)]] = Field(
        default_factory=list, max_length=100, description="names of the runs that it consents to; * and ? are wildcards; empty: none"
    )
    refuses: list[Id] = Field(default_factory=list, max_length=1000, description="ids of runs of which it takes no work")


class Assignment(BaseModel):
    """A block to train under a lease."""

    assignment_id: Id
    attempt: int = Field(ge=1, lt=2**31)
    lease_seconds: float = Field(ge=0.1, le=366 * 86_400)
    run_id: Id
    run_name: Name
    round: int = Field(ge=0, lt=2**31)
    cycle: int = Field(ge=0, lt=2**31)
    block: Name
    manifest: Manifest
    train: TrainSettings
    delta_codec: DeltaCodec = "float32"
    error_feedback: bool = Field(False, description="carry what the codec left out to the next visit of the same block")
    max_delta_bytes: int


class Trouble(Message):
    """What keeps an agent from fetching or sending, while it goes on trying."""

    code: Literal["unreachable", "not_a_coordinator", "proxy_body_limit", "another_coordinator"]
    status: int | None = Field(None, ge=100, le=599, description="of the answer that was not the coordinator's")
    bytes: Count | None = Field(None, description="size of the body that was not let through")


class Progress(Message):
    """Scalars only: nothing that could carry a row."""

    phase: Literal["fetching", "loading", "training", "sending"]
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    peak_memory_bytes: Count | None = None
    trouble: Trouble | None = None


class RenewRequest(Message):
    attempt: int
    progress: Progress | None = None


class RenewAnswer(BaseModel):
    lease_seconds: float
    go_on: bool = Field(description="false: stop training and give the assignment back (the run has ended)")


class TrainMetrics(Message):
    """What a visit reports of itself."""

    steps: Count
    rows: Count
    tokens: Count
    loss_first: float
    loss_last: float
    seconds: float = Field(ge=0)
    tokens_per_s: float = Field(ge=0)
    peak_memory_bytes: Count = Field(0, description="peak of the training process beyond its state before the model was loaded")
    started_at: datetime | None = Field(None, description="when its first training step began, by the agent's clock")
    bytes_down: Count = Field(0, description="bytes of shards, patches and files fetched for this visit")
    bytes_up: Count = Field(0, description="bytes of the delta sent until it was submitted, repeats included")
    delta_error: float | None = Field(
        None, ge=0, description="norm of what the delta's codec left out, relative to the norm of what was trained"
    )


class DeltaSubmission(Message):
    attempt: int
    digest: Digest
    metrics: TrainMetrics


class DeltaReceipt(BaseModel):
    """The answer to a delta; a repeat of (attempt, digest) gets the same one."""

    assignment_id: Id
    attempt: int
    digest: Digest
    state: Literal["submitted"] = "submitted"


class UploadOffset(BaseModel):
    offset: int = Field(description="bytes that have arrived; send from here")
    complete: bool


ReturnReason = Literal[
    "stopping", "not_consented", "data_invalid", "non_finite_loss", "out_of_memory", "memory_limit", "disk_limit", "disk_full",
    "shard_corrupt", "manifest_invalid", "trainer_died", "stalled", "delta_refused", "model_mismatch", "bug", "disk_unwritable", "other",
]  # fmt: skip
"""Why an agent gives an assignment back."""

LASTING_REASONS: frozenset[str] = frozenset(
    {"not_consented", "data_invalid", "memory_limit", "disk_limit", "out_of_memory", "non_finite_loss", "delta_refused", "manifest_invalid"}
)
"""Reasons that would be the same at the next attempt: this agent is not asked again in this round."""


COORDINATORS_OWN: frozenset[str] = frozenset({"model_mismatch"})
"""Reasons that no agent can mend: the run is paused at once, and no other agent is asked."""


class ReturnRequest(Message):
    attempt: int
    reason: ReturnReason
    message: PlainText = Field("", max_length=2000)


class AssignmentState(BaseModel):
    assignment_id: Id
    state: Word
    reason: str | None
    attempt: int


# ---- exports --------------------------------------------------------------------------------------------------------


class ExportView(BaseModel):
    """An export: whether it is ready, and its files."""

    export_id: Id
    ready: bool
    after_rounds: int | None = None
    files: list[FileRef] = []
