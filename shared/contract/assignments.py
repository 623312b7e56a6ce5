"""An assignment and all that is said of it while it is held."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fedcybgd.shared.contract.digests import Digest
from fedcybgd.shared.contract.manifests import Manifest
from fedcybgd.shared.contract.plain import PlainText
from fedcybgd.shared.contract.training import TrainMetrics, TrainSettings
from fedcybgd.shared.contract.versions import or_else
from fedcybgd.shared.contract.words import MOST_BLOCKS, AgentMessage, Count, DeltaCodec, Id, Name, Word

LeaseSeconds = Annotated[float, Field(ge=0.1, le=366 * 86_400, allow_inf_nan=False)]


class AddedDelta(BaseModel):
    """A delta that is part of the present model."""

    block: Name
    assignment_id: Id
    digest: Digest


class LeasedAssignment(BaseModel):
    """A block to train under a lease."""

    assignment_id: Id
    attempt: int = Field(ge=1, lt=2**31)
    lease_seconds: LeaseSeconds
    run_id: Id
    run_name: Name
    round: int = Field(ge=0, lt=2**31)
    cycle: int = Field(ge=0, lt=2**31)
    block: Name = Field(description="the visited block, the first of several; `train.groups` has all that is trained")
    manifest: Manifest
    train: TrainSettings
    delta_codec: DeltaCodec = "float32"
    error_feedback: bool = Field(False, description="carry what the codec left out to the next visit of the same block")
    max_delta_bytes: Count
    stall_s: float | None = Field(
        None, ge=1, le=366 * 86_400, description="seconds without progress after which it is taken back; null: none are said"
    )
    carried: list[AddedDelta] = Field(
        default_factory=list,
        max_length=MOST_BLOCKS,
        description="with error feedback: of each block the delta of this agent that was added last; what its codec left out is carried",
    )


class Trouble(AgentMessage):
    """What keeps an agent from fetching or sending, while it goes on trying."""

    code: Literal["unreachable", "not_a_coordinator", "proxy_body_limit", "another_coordinator", "coordinator_key_differs"]
    status: int | None = Field(None, ge=100, le=599, description="of the answer that was not the coordinator's")
    bytes: Count | None = Field(None, description="size of the body that was not let through")


class Progress(AgentMessage):
    """Scalars only: nothing that could carry a row."""

    phase: Literal["fetching", "loading", "training", "sending"]
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    peak_memory_bytes: Count | None = None
    moved: Count | None = Field(
        None, description="a number that changes while something is done in a phase: bytes fetched or sent, processor time while loading"
    )
    trouble: Annotated[Trouble | None, or_else(None)] = None


class RenewRequest(AgentMessage):
    attempt: int
    progress: Annotated[Progress | None, or_else(None)] = None


class RenewAnswer(BaseModel):
    lease_seconds: LeaseSeconds
    go_on: bool = Field(description="false: stop training and give the assignment back")
    reason: Word | None = Field(None, description="why: null where the run has ended; no_progress, visit_too_long: it was taken back")


class DeltaSubmission(AgentMessage):
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
    offset: int = Field(ge=0, lt=2**63, description="bytes that have arrived; send from here")
    complete: bool


ReturnReason = Literal[
    "stopping", "not_consented", "data_invalid", "non_finite_loss", "out_of_memory", "memory_limit", "disk_limit", "disk_full",
    "shard_corrupt", "manifest_invalid", "trainer_died", "stalled", "delta_refused", "model_mismatch", "bug", "disk_unwritable",
    "policy_refused", "other",
]  # fmt: skip
"""Why an agent gives an assignment back."""

LASTING_REASONS: frozenset[str] = frozenset(
    {
        "not_consented", "policy_refused", "data_invalid", "memory_limit", "disk_limit", "out_of_memory", "non_finite_loss", "delta_refused",
        "manifest_invalid",
    }
)  # fmt: skip
"""Reasons that would be the same at the next attempt: this agent is not asked again in this round."""


COORDINATORS_OWN: frozenset[str] = frozenset({"model_mismatch"})
"""Reasons that no agent can mend, where they are true: this agent is not asked again in this round, and others are. When another says the same,
or nobody else is left, the run is paused.
"""


class ReturnRequest(AgentMessage):
    attempt: int
    reason: Annotated[ReturnReason, or_else("other")]
    message: PlainText = Field("", max_length=2000)


class AssignmentAnswer(BaseModel):
    assignment_id: Id
    state: Word
    reason: str | None
    attempt: int
