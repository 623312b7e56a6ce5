"""What operators see of a run from near: its block map, the history of a block, its timeline and its series."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.views import BlockView, BytesView, EvaluationView, EventView

PhaseKind = Literal["waiting", "transfer", "training", "judging"]


class VerdictView(BaseModel):
    """What became of a delta of a block."""

    round: int
    agent: str | None = Field(description="name of who trained it; of several of a round, the first")
    state: str
    reason: str | None
    norm: float | None = Field(description="of the delta; null: it was not measured")
    share: float | None = Field(description="that norm, as a share of the block's own")
    loss_first: float | None = Field(description="training loss of the visit's first steps, as its agent says")
    loss_last: float | None
    at: datetime | None


class HolderView(BaseModel):
    """Who is at a block in the present round, or is awaited."""

    agent: str | None = Field(description="null: nobody has it")
    meant_for: str | None
    state: str
    attempt: int
    failures: int
    lease_expires_at: datetime | None
    progress: Progress | None


class BlockMapView(BlockView):
    """A block of a run as it is now, and what happens to it."""

    position: int = Field(description="in the model, from 0")
    influence: float | None = Field(description="how much a layer changes what passes through it; null: not measured")
    round: int | None = Field(description="the round that made the present version; null: it is as it was prepared")
    origin: str | None = Field(
        description="of the present version: base, applied, restored, averaged, best, calibrated or found; null: no history is kept"
    )
    changed_at: datetime | None
    sizes: dict[str, int] = Field(description="codec → bytes on the wire of the present version, in the codecs in which it is kept")
    last: VerdictView | None = Field(
        description="the delta that the present version was made by, or one of them; null where it was made otherwise"
    )
    rejected: VerdictView | None = Field(description="the last delta that was rejected, where that was later")
    holders: list[HolderView] = Field(description="of the present round; of a round of many agents the first few")


class VersionView(BaseModel):
    """One version of a block."""

    version: int
    origin: str = Field(description="base, applied, restored, averaged, best, calibrated or found")
    parent: int | None
    round: int | None
    digest: str
    size: int
    kept: bool = Field(description="it can be made again")
    made_at: datetime
    made_by: list[VerdictView] = Field(description="the deltas of that round; of many the first few")


class PhaseView(BaseModel):
    """A time of a visit in which one thing was done."""

    kind: PhaseKind = Field(description="waiting for an agent, transfer to or from it, training, judging by the coordinator")
    begins: datetime
    ends: datetime | None = Field(description="null: it goes on")


class VisitView(BaseModel):
    """One visit on the timeline of a run."""

    id: str
    run: str = Field(description="name of the run")
    run_id: str
    round: int
    seat: int
    blocks: list[str]
    agent: str | None
    meant_for: str | None
    state: str
    reason: str | None
    attempt: int
    failures: int = Field(description="attempts that came to nothing; the events of the run say when and why")
    applied: bool
    phases: list[PhaseView] = Field(description="of the last attempt, in the order of time")
    tokens_per_s: float | None = Field(description="as its agent says, like all that follows; null: it has not said")
    loss_first: float | None
    loss_last: float | None
    peak_memory_bytes: int | None


class LossView(BaseModel):
    """Held-out loss of the real model on the calibration rows."""

    after_rounds: int
    loss: float
    at: datetime | None


class SeriesView(BaseModel):
    """The scores of a run against what they had cost, thinned to as many points as were asked for; the first and the last always stay."""

    spacing: int = Field(description="rounds between two points, at the least")
    evaluations: list[EvaluationView] = Field(description="the oldest first")
    losses: list[LossView] = Field(description="the oldest first")
    bytes: BytesView
    visits: int = Field(description="visits of closed rounds")
    fedavg_bytes: int = Field(
        description="what as many visits would have moved that take the whole model and send a delta of it, both in bfloat16 (FedAvg)"
    )


class EventEntry(EventView):
    """An event, with whom and what it is about."""

    id: int
    run: str | None = Field(description="name of the run")
    run_id: str | None
    agent: str | None = Field(description="name of the agent")


class ExportEntry(BaseModel):
    """An export that was asked for."""

    export_id: str
    state: str = Field(description="queued, running, done or failed")
    created_at: datetime
    error: str | None
    after_rounds: int | None = Field(description="null: it is not done")
    files: list[FileRef]
