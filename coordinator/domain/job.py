"""What heavy work takes and gives: digests and settings in, digests and numbers out; and in which lane it waits."""

from enum import StrEnum

from pydantic import BaseModel

from coordinator.domain.run_file import AdmissionSection
from shared.protocol import FileRef, ShardRef, Task


class JobKind(StrEnum):
    ADMIT = "admit"
    APPLY = "apply"
    PREPARE = "prepare"
    IMPORT = "import"
    EVALUATE = "evaluate"
    EXPORT = "export"


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


LANES: dict[JobKind, str] = {
    # An agent waits for these; they never stand behind an evaluation.
    JobKind.ADMIT: "quick",
    JobKind.APPLY: "quick",
    JobKind.PREPARE: "slow",
    JobKind.IMPORT: "slow",
    JobKind.EVALUATE: "slow",
    JobKind.EXPORT: "slow",
}
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
    config: dict[str, object]
    files: list[FileRef]
    blocks: list[StoredBlock]
    left_out: list[str]
    num_parameters: int


class HeldOutRef(BaseModel):
    digest: str
    name: str
    columns: dict[str, str]


class PreparePayload(BaseModel):
    config: dict[str, object]
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


class ApplyPayload(BaseModel):
    round: int
    blocks: list[ShardRef]
    deltas: list[str]
    weights: list[float]


class ApplyResult(BaseModel):
    blocks: list[ShardRef]


class EvaluatePayload(BaseModel):
    after_rounds: int
    task: Task
    num_labels: int | None
    label_names: list[str] | None
    max_length: int
    files: list[FileRef]
    blocks: list[ShardRef]
    held_out: HeldOutRef


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
