"""What heavy work takes and gives: digests and settings in, digests and numbers out; and in which lane it waits."""

from enum import StrEnum

from pydantic import BaseModel

from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.shared.contract.manifests import BlobRef, FileRef, PatchRef, ShardRef
from fedcybgd.shared.contract.words import JsonObject, Task
from fedcybgd.shared.files.table_format import TableFormat


class JobKind(StrEnum):
    ADMIT = "admit"
    APPLY = "apply"
    PREPARE = "prepare"
    IMPORT = "import"
    EVALUATE = "evaluate"
    EXPORT = "export"
    ENCODE = "encode"
    INFLUENCE = "influence"
    FIDELITY = "fidelity"
    LOSS = "loss"


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    """of a measurement: a newer one was wanted before it began"""


LANES: dict[JobKind, str] = {
    # An agent waits for these; they never stand behind an evaluation.
    JobKind.ADMIT: "quick",
    JobKind.APPLY: "quick",
    JobKind.ENCODE: "quick",
    JobKind.PREPARE: "slow",
    JobKind.IMPORT: "slow",
    JobKind.EVALUATE: "slow",
    JobKind.EXPORT: "slow",
    JobKind.INFLUENCE: "slow",
    JobKind.FIDELITY: "slow",
    JobKind.LOSS: "slow",
}
MEASUREMENTS = (JobKind.EVALUATE, JobKind.LOSS, JobKind.FIDELITY)
"""What only tells how a run goes: it goes on where these fail."""
REPEATED = (JobKind.ADMIT, JobKind.APPLY)
"""What pauses its run when it fails, and is tried again when the run is resumed."""
MAX_TRIES = 3
"""Times that a job is begun before a process that dies under it counts as its failure."""


class TensorShape(BaseModel):
    name: str
    shape: list[int]


class StoredBlock(BaseModel):
    """A block of an added model, or of a run at its start."""

    name: str
    kind: str
    digest: str
    size: int
    num_parameters: int
    tensors: list[TensorShape]
    """Of an added model: all of them; of a run: those that can be trained."""


class ImportPayload(BaseModel):
    source: str


class ImportResult(BaseModel):
    config: JsonObject
    files: list[FileRef]
    blocks: list[StoredBlock]
    left_out: list[str]
    num_parameters: int
    notes: list[str] = []
    """what whoever uses the model should know of its tokenizer"""


class HeldOutRef(BaseModel):
    digest: str
    name: str
    columns: dict[str, str]
    how: TableFormat = TableFormat()


class PreparePayload(BaseModel):
    config: JsonObject
    files: list[FileRef]
    blocks: list[StoredBlock]
    task: Task
    num_labels: int | None
    label_names: list[str] | None
    max_length: int
    patterns: list[str]
    always: list[str]
    layers_per_block: int
    seed: int
    held_out: HeldOutRef | None


class PrepareResult(BaseModel):
    files: list[FileRef]
    blocks: list[StoredBlock]
    trained: list[str]
    held_out_rows: int | None


class AdmitPayload(BaseModel):
    assignment_id: str
    delta: str
    blocks: list[ShardRef]
    always: list[str]
    rules: AdmissionSection


class AdmitResult(BaseModel):
    rejected_because: str | None
    norms: dict[str, float]


class Term(BaseModel):
    """A delta and its weight in the sum that a block becomes larger by."""

    digest: str
    weight: float


class Change(BaseModel):
    """A block, exact, and what is added to it."""

    block: ShardRef
    terms: list[Term]
    aggregate: Aggregate = "sum"
    codecs: list[str] = []
    """that the new version is wanted in, besides those in which the old one is known"""


class EncodedRef(BaseModel):
    """A block in a codec: the safetensors file and the same in the lossless coding."""

    source: str
    """digest of the exact shard"""
    codec: str
    digest: str
    size: int
    packed: BlobRef


class PatchMade(PatchRef):
    target: str


class EncodePayload(BaseModel):
    """Blocks to encode; `config` and `task` describe the model, whose heads and neurons pruning has to know."""

    config: FileRef
    task: Task
    wanted: list[ShardRef]
    """exact shards' digests, each with the codec that it is wanted in"""


class EncodeResult(BaseModel):
    shards: list[EncodedRef]


class ApplyPayload(BaseModel):
    round: int
    changes: list[Change]
    assignments: list[str] = []
    """ids of those whose deltas these are"""
    config: FileRef | None = None
    task: Task | None = None
    before: list[EncodedRef] = []
    """the blocks as they are, in every codec that agents may hold: the new version is made in each of them, with patches"""


class ApplyResult(BaseModel):
    blocks: list[ShardRef]
    shards: list[EncodedRef] = []
    patches: list[PatchMade] = []


class EvaluatePayload(BaseModel):
    after_rounds: int
    task: Task
    num_labels: int | None
    label_names: list[str] | None
    max_length: int
    files: list[FileRef]
    blocks: list[ShardRef]
    held_out: HeldOutRef
    rows: int | None = None
    """the first ones only; None: all"""


class EvaluateResult(BaseModel):
    rows: int
    loss: float
    """Mean cross entropy in nats, per row (classification) or per token (language modelling)."""
    accuracy: float | None
    seconds: float


class ExportPayload(BaseModel):
    after_rounds: int
    task: Task
    files: list[FileRef]
    blocks: list[ShardRef]


class ExportResult(BaseModel):
    after_rounds: int
    files: list[FileRef]
