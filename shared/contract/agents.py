"""What agents say of themselves, and what they are told of runs."""

from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.plain import PlainText
from fedcybgd.shared.contract.signatures import PUBLIC_KEY, strong_key
from fedcybgd.shared.contract.task import LabelName
from fedcybgd.shared.contract.versions import or_else
from fedcybgd.shared.contract.words import MOST_BLOCKS, MOST_FILES, MOST_STEPS, AgentMessage, CorrectedLayers, Count, Id, Name, Size, Word

PublicKey = Annotated[str, StringConstraints(pattern=PUBLIC_KEY)]
StrongKey = Annotated[PublicKey, AfterValidator(strong_key)]
Secret = Annotated[str, StringConstraints(max_length=200, pattern=r"^[!-~]+$")]


class DeviceInfo(AgentMessage):
    """What an agent says of its device; nothing of its data."""

    kind: PlainText = Field("cpu", max_length=20)
    name: PlainText = Field("", max_length=200)
    cores: int = Field(1, ge=1, lt=2**31)
    memory_bytes: Count = 0
    accelerator_bytes: Count = 0


class EnrolRequest(AgentMessage):
    token: str = Field(min_length=8, max_length=200)
    name: Name
    device: DeviceInfo = DeviceInfo()
    version: PlainText = Field("", max_length=40)
    public_key: StrongKey | None = Field(None, description="Ed25519, in base64; with it the agent signs its requests, and gets no secret")
    agent_id: Id | None = Field(None, description="its own, if it is enrolled and asks for another key: its name may be another by now")


class EnrolAnswer(BaseModel):
    agent_id: Id
    name: Name
    key: Secret | None = Field(description="shown this once; the coordinator keeps a hash of it only; null: the agent signs")
    public_key: PublicKey | None = Field(None, description="the one that it signs with, as the coordinator has heard it")


class KeyRequest(AgentMessage):
    public_key: StrongKey | None = Field(None, description="Ed25519, in base64; the agent signs with it from now on")


class NewKey(BaseModel):
    key: Secret | None = Field(description="shown this once; null: the agent signs. The old one is void")


class Health(BaseModel):
    status: str
    version: str = Field(description="of the program, not of the protocol")
    full_disks: list[Word] = Field(
        default_factory=list, description="what cannot be written until there is space: blobs, uploads, database"
    )


FieldNames = Annotated[str, StringConstraints(pattern=r"^[a-z_]+( and [a-z_]+)*$", max_length=200)]
"""Fields of a task that stand for each other, or belong together"""


class VisitOffer(BaseModel):
    """How the visits of a run train: what an owner wants to know before rows are lent to it."""

    blocks: list[Name] = Field(max_length=MOST_BLOCKS, description="all that are trained in some visit, along with others or not")
    steps: int | None = Field(None, ge=1, le=MOST_STEPS, description="null: passes over the rows instead")
    batch_size: int = Field(ge=1, le=65536)
    delta_patches: bool = Field(description="whether other agents may fetch this agent's deltas")
    all_at_once: bool = Field(False, description="every visit trains all of these blocks, and its agent gets the whole model exact")
    corrects: CorrectedLayers | None = Field(
        None, description="which layers a visit corrects that it does not train: all of these blocks, or those above its own; null: none"
    )
    weighed_by_rows: bool = Field(False, description="a delta counts by the rows that it was trained on")
    least_disk_bytes: Size | None = Field(
        None, description="what the model takes of an agent's disk at the least; null: the policy goes by what each agent has room for"
    )


class RunOffer(BaseModel):
    """A run that this agent may take part in, with what its data must look like."""

    run_id: Id
    name: Name
    state: Word
    task: Name = Field(description="text-classification, image-classification, causal-lm or extractive-qa; of a later version, others")
    fields: list[FieldNames] = Field(max_length=20, description="fields that the agent's columns must supply")
    optional_fields: list[FieldNames] = Field(max_length=20)
    num_labels: int | None = Field(ge=1, le=100_000)
    label_names: list[LabelName] | None = Field(max_length=100_000)
    max_length: int = Field(ge=1, le=1 << 20)
    files: list[FileRef] = Field(
        max_length=MOST_FILES, description="configuration, and tokenizer or preprocessing, served by /v1/runs/{run_id}/files/{name}"
    )
    visits: VisitOffer | None = None


UnfitReason = Literal[
    "not_consented", "data_missing", "data_invalid", "out_of_memory", "memory_limit", "disk_limit", "delta_refused", "manifest_invalid",
    "policy_refused", "rows_hidden",
]  # fmt: skip
"""Why an agent takes no work of a run until its owner has mended something."""
MENDABLE_REASONS: frozenset[str] = frozenset(get_args(UnfitReason))


class RunReadiness(AgentMessage):
    """What an agent says of a run that is open to it: facts of a check, nothing of its data."""

    run_id: Id
    fits: bool = Field(description="its owner has tied data to the run, and they fit the task")
    reason: Annotated[UnfitReason | None, or_else(None)] = Field(None, description="why not")
    rows: Count | None = Field(None, description="as many or more; exactly as many if `exact`; null: the owner does not say")
    exact: bool = False


class ReadinessReport(AgentMessage):
    runs: list[RunReadiness] = Field(max_length=1000)


class AgentSelf(BaseModel):
    agent_id: Id
    name: Name
    state: Word
    enrolled_at: datetime
    key_ends_in_s: float | None = Field(None, ge=0, description="seconds until its key is void unless it makes another; null: never")
    key_renews_in_s: float | None = Field(None, ge=0, description="seconds until half of its time is over, and it should make another")
    runs: list[RunOffer] = Field(max_length=10_000)


class DeclaredLimits(AgentMessage):
    """What an agent allows training to take; 0 where it does not say."""

    memory_bytes: Count = 0
    bytes_per_s: Count = Field(0, description="speed of its line")
    disk_bytes: Count = Field(0, description="that shards may take of its disk")


class ClaimRequest(AgentMessage):
    limits: DeclaredLimits = DeclaredLimits()
    runs: list[Annotated[str, StringConstraints(max_length=100)]] = Field(
        default_factory=list, max_length=100, description="names of the runs that it consents to; * and ? are wildcards; empty: none"
    )
    refuses: list[Id] = Field(default_factory=list, max_length=1000, description="ids of runs of which it takes no work")
