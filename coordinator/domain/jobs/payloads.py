"""What the jobs that make and change models take and give: digests and settings in, digests and numbers out."""

from pydantic import BaseModel

from fedcybgd.coordinator.domain.adapters_section import AdaptersSection
from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.band import BlockDelta
from fedcybgd.coordinator.domain.corrections_section import CorrectionsSection
from fedcybgd.coordinator.domain.jobs.measurements import Calibration, HeldOutRef
from fedcybgd.coordinator.domain.model_blocks import StoredBlock
from fedcybgd.coordinator.domain.outer import Outer
from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.shared.contract.manifests import BlobRef, FileRef, PatchRef, ShardRef
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.training import Corrections
from fedcybgd.shared.contract.words import ExportForm, HeadStart, JsonObject, Task


class ImportPayload(BaseModel):
    source: str
    called: str = ""
    """what messages call a model that was uploaded, and has no directory that anybody knows"""
    files: list[FileRef] = []
    """those of a model that was uploaded; else they are found at the source"""
    upload: str | None = None
    """its id, then"""


class ImportResult(BaseModel):
    config: JsonObject
    files: list[FileRef]
    blocks: list[StoredBlock]
    left_out: list[str]
    num_parameters: int
    notes: list[str] = []
    """what whoever uses the model should know of its tokenizer"""


class PreparePayload(TaskSpec):
    config: JsonObject
    files: list[FileRef]
    blocks: list[StoredBlock]
    patterns: list[str]
    always: list[str]
    layers_per_block: int
    seed: int
    held_out: HeldOutRef | None
    adapters: AdaptersSection | None = None
    corrections: CorrectionsSection | None = None
    head_start: HeadStart = "fresh"


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
    corrected: list[ShardRef] = []
    """exact, the blocks of which the delta has corrections"""
    corrections: Corrections | None = None
    labels: int | None = None
    """of a head that is put together by its labels' rows: how many there are"""


class AdmitResult(BaseModel):
    rejected_because: str | None
    deltas: dict[str, BlockDelta] = {}
    """what was measured of each block whose norm is a number"""


class Term(BaseModel):
    """A delta and its weight in the sum that a block becomes larger by."""

    digest: str
    weight: float
    visit: str = ""
    """id of the assignment whose delta it is"""
    rows: list[float] = []
    """weights of the rows of the tensors that have a row for each label, where they are not all `weight`"""
    scale: float | None = None
    """where the delta has corrections of the block: how often counts the product of two factors; None: it has the block itself"""

    def scaled(self, factor: float) -> "Term":
        return self.model_copy(update={"weight": self.weight * factor, "rows": [weight * factor for weight in self.rows]})


class AdaptersBase(BaseModel):
    """The adapters that deltas were trained from, which are beside matrices of a block."""

    block: ShardRef
    scale: float
    """how often counts what they add"""


class Change(BaseModel):
    """A block, exact, and what is added to it."""

    block: ShardRef
    terms: list[Term]
    aggregate: Aggregate = "sum"
    outer: Outer | None = None
    """the optimizer that takes the sum, or the mean, for its gradient"""
    velocity: str | None = None
    """digest of what that optimizer carries on from the version before; None: nothing yet"""
    beside: AdaptersBase | None = None
    """where the deltas are of adapters, whose mean leaves something out that is added to this block"""
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
    mends: str | None = None
    """the lost blob that somebody waits for"""


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
    steps: list[PatchMade] = []
    """to blocks as they are, from versions that agents still hold: with the next one each chain of them becomes one patch"""
    halved: bool = False
    """it was applied whole before, and the gate found it too much"""


class ApplyResult(BaseModel):
    blocks: list[ShardRef]
    velocities: dict[str, str] = {}
    """block → digest of what the outer optimizer carries on from its new version, where there is one"""
    shards: list[EncodedRef] = []
    patches: list[PatchMade] = []


class GatePayload(Calibration):
    """A round whose deltas were applied aside: `blocks` are the present versions."""

    applied: ApplyPayload
    made: ApplyResult
    losses: list[float]
    """before and after the rounds so far, the oldest first"""
    known: bool
    """the last of them is that of the present versions"""


class GateResult(BaseModel):
    losses: list[float]
    """to that of the present versions"""
    after: float | None
    """None: no number"""
    alone: dict[str, float | None] = {}
    """where that is out of proportion and there are several deltas: after each of them alone"""


class Restoration(BaseModel):
    """A block that becomes an older version again."""

    present: ShardRef
    target: ShardRef
    """the older version, exact"""
    velocity: str | None = None
    """digest of what the outer optimizer carries on from it"""
    way: list[Change] = []
    """what leads to it from a version whose bytes are there"""
    replay: Change | None = None
    """what is added to it then"""


class RestorePayload(BaseModel):
    after_rounds: int
    versions: dict[str, int]
    """of all blocks, when this was decided"""
    blocks: list[Restoration]
    without: str | None = None
    """id of the agent whose deltas are taken out"""
    replayed: list[str] = []
    """ids of the visits whose deltas are added again without those"""
    config: FileRef | None = None
    task: Task | None = None
    before: list[EncodedRef] = []


class RestoreResult(BaseModel):
    replayed: list[ShardRef]
    """of the blocks that have a replay, what came of it"""
    velocities: dict[str, str] = {}
    """of those, as in ApplyResult"""
    shards: list[EncodedRef] = []
    patches: list[PatchMade] = []


class ExportPayload(BaseModel):
    after_rounds: int
    task: Task
    files: list[FileRef]
    blocks: list[ShardRef]
    """for peft only the adapters, and what the added model does not have besides"""
    form: ExportForm = "merged"
    base: str | None = None
    """what peft calls the added model"""
    card: str | None = None
    """what the model says of itself; None: the export was asked for before there were cards"""
    restorations: list[Restoration] = []
    """of the blocks that are not the present ones and have to be made again first"""


class ExportResult(BaseModel):
    after_rounds: int
    files: list[FileRef]
