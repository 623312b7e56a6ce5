"""What measuring a model, its layers and its emulators takes and gives."""

from pydantic import BaseModel, Field

from fedcybgd.shared.contract.manifests import FileRef, ShardRef
from fedcybgd.shared.contract.measured import Spent
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.table_format import TableFormat


class HeldOutRef(BaseModel):
    digest: str
    name: str
    columns: dict[str, str]
    how: TableFormat = TableFormat()


class Calibration(TaskSpec):
    """A model, exact, and the rows that it is measured on."""

    files: list[FileRef]
    blocks: list[ShardRef]
    """the real model, all of it, in model order"""
    held_out: HeldOutRef
    rows: int = Field(ge=1)
    """how many of the first held-out rows (or windows of text) are taken"""


class EvaluatePayload(TaskSpec):
    after_rounds: int
    files: list[FileRef]
    blocks: list[ShardRef]
    held_out: HeldOutRef
    rows: int | None = None
    """the first ones only; None: all"""
    spent: Spent | None = None
    """what the model had cost by then, for the books"""


class EvaluateResult(BaseModel):
    rows: int
    loss: float
    """Mean cross entropy in nats, per row (classification, answers in a context) or per token (language modelling)."""
    loss_error: float | None = None
    bits_per_byte: float | None = None
    accuracy: float | None
    accuracy_error: float | None = None
    majority: float | None = None
    matthews: float | None = None
    macro_f1: float | None = None
    """mean over the labels that held-out rows have"""
    labels_held_out: int | None = None
    labels_never_right: int | None = None
    """of those, how many no row was right of"""
    counted: list[list[int]] | None = None
    """of each label that a row has or was taken for: the label, rows, guesses, and those that were right"""
    f1: float | None = None
    f1_error: float | None = None
    exact_match: float | None = None
    exact_match_error: float | None = None
    seconds: float


class InfluencePayload(Calibration):
    pass


class InfluenceResult(BaseModel):
    influence: dict[str, float]
    """by block of layers: 1 - mean cosine between the hidden states that enter it and those that leave it"""
    rows: int
    tokens: int
    seconds: float


class ImportancePayload(Calibration):
    visited: list[str]


class ImportanceResult(BaseModel):
    importance: dict[str, float]
    """by visited block: the norm of the gradient of the mean loss (nats) by its parameters"""
    rows: int
    seconds: float


class FidelityPayload(Calibration):
    plan: str
    """key of the plan that the emulator was made by; it comes back in the result"""
    block: str
    """the visited block"""
    emulator: list[ShardRef]
    """the emulator's shards, as in its manifest"""
    dropped: list[str] = Field(default_factory=list)
    batch_size: int = Field(16, ge=1)
    """rows of a batch whose gradients are compared: as many as the run trains on in a step"""
    round: int = 0
    codecs: dict[str, str] = Field(default_factory=dict)
    """the plan, for the books"""


class FidelityResult(BaseModel):
    plan: str
    block: str
    cosine: float
    """between the block's gradient in the emulator and in the real model on one batch, averaged over batches by their predictions; 0 where
    the emulator's is zero or not finite"""
    cosine_worst: float
    """of the worst batch"""
    loss_real: float
    loss_emulator: float | None
    """mean cross entropy in nats, as in an evaluation; None: not finite"""
    rows: int
    seconds: float
