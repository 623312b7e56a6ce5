"""What operators see, as models: built by `status`, answered by the API, drawn by the dashboard and the command line."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.measured import Conclusion, Failure, LabelScore, Score
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.contract.words import JsonObject


class AgentView(BaseModel):
    id: str
    name: str
    state: str
    device: DeviceInfo
    limits: DeclaredLimits = Field(DeclaredLimits(), description="what it lets training take, as it said last")
    version: str
    enrolled_at: datetime
    last_seen_at: datetime | None
    key_expires_at: datetime | None = Field(None, description="when its key ends unless it makes another before; null: never")
    quarantined_until: datetime | None = Field(None, description="until then it is asked for nothing: it failed at one visit after another")
    strikes: int = Field(0, description="visits at which it was passed over since its last good delta")
    quarantines: int = Field(0, description="how often it was in quarantine since then")
    last_error: str | None
    last_error_at: datetime | None


class ModelBlockView(BaseModel):
    name: str
    kind: str
    digest: str
    size: int
    num_parameters: int


class ModelView(BaseModel):
    id: str
    name: str
    source: str
    state: str = Field(description="adding, ready or failed")
    reason: str | None
    num_parameters: int
    blocks: list[ModelBlockView]
    left_out: list[str] = Field(description="tensors of the checkpoint that the model does without")
    config: JsonObject = Field({}, description="its configuration, as it is used: the contents of a config.json")
    created_at: datetime


class BlockView(BaseModel):
    name: str
    kind: str
    version: int
    digest: str
    size: int
    num_parameters: int
    trained: bool = Field(description="visited in every cycle, or trained along")


class EvaluationView(Score):
    after_rounds: int
    created_at: datetime

    def ended_with(self, kept: Score | None) -> "EvaluationView":
        """The same with the numbers of the model that a run ended with, if that is another; what it had cost stays."""
        values = {} if kept is None else {name: getattr(kept, name) for name in Score.model_fields if name != "spent"}
        return self.model_copy(update=values)


class LabelScoresView(BaseModel):
    """Some of the labels of one evaluation."""

    after_rounds: int
    labels: int = Field(description="how many there are, that a held-out row has or was taken for")
    scores: list[LabelScore]


class AssignmentView(BaseModel):
    id: str
    round: int
    seat: int = Field(description="which of the round's seats, from 0")
    block: str = Field(description="the first of `blocks`")
    blocks: list[str] = Field(description="the visited blocks")
    state: str
    reason: str | None
    attempt: int
    agent: str | None = Field(description="name of the agent that has it, or had it")
    meant_for: str | None
    lease_expires_at: datetime | None
    leased_at: datetime | None
    submitted_at: datetime | None
    judged_at: datetime | None
    progressed_at: datetime | None = Field(None, description="when its agent was last seen to get on")
    progress: Progress | None
    metrics: TrainMetrics | None
    delta_digest: str | None
    applied: bool = Field(description="its delta is part of the present blocks")


class FidelityView(BaseModel):
    """An emulator against the real model, on the calibration rows."""

    block: str = Field(description="the visited block, whose gradient is compared")
    plan: str = Field(description="what was compressed, and how")
    cosine: float | None = Field(description="between the block's gradient in the emulator and in the real model, batch by batch")
    loss_real: float | None
    loss_emulator: float | None
    failed: Failure | None = Field(None, description="why there is no cosine")


class TrafficView(BaseModel):
    """Bytes that crossed the wire."""

    round: int
    agent: str
    kind: str = Field(description="shard, patch or file (down), delta (up)")
    bytes: int


class ExposureView(BaseModel):
    agent: str
    run_id: str
    block: str
    version: int
    codec: str
    first_at: datetime


class RoundView(BaseModel):
    number: int
    cycle: int
    blocks: list[str] = Field(description="the visited ones: one, or as many as a wave has")
    state: str
    applied: int = Field(description="how many of them are part of the present model")
    loss_before: float | None = Field(description="held-out loss of the real model before the round")
    loss_after: float | None
    loss_failed: Failure | None = Field(None, description="why one of the two could not be measured")
    fidelity: list[FidelityView] = Field(description="of the emulators that were given out in it")
    opened_at: datetime
    closed_at: datetime | None


class EventView(BaseModel):
    at: datetime
    level: str
    code: str
    message: str


class BytesView(BaseModel):
    down: int = Field(description="bytes of shards, patches and files sent to agents")
    up: int = Field(description="bytes of deltas received")


class RunSummary(BaseModel):
    id: str
    name: str
    model: str
    state: str
    reason: str | None
    prepared: bool
    waits_for_agents: bool = Field(False, description="it is paused because nobody could go on, and goes on by itself when somebody can")
    rounds_done: int
    rounds_total: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class PaceView(BaseModel):
    """How fast a run gets on, and so what is left of it; of a run that stands still nothing is foretold."""

    round_s: float | None = Field(description="what a round takes: the median of the last ones; null: none is closed")
    quiet_s: float | None = Field(description="since the last round was closed, or the run began; null: it does not run")
    seconds_left: float | None = Field(description="at that pace; null: it is not known, or it stands still")
    still: str | None = Field(description="why it stands still; null: it gets on")


class AnchorView(BaseModel):
    """The run that trains the head of another alone, as often on as many rows."""

    id: str
    name: str
    state: str
    rounds_done: int
    rounds_total: int
    score: Score | None = Field(description="of the model that it ended with, or the newest so far")


def _as_json(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


class RunView(RunSummary):
    spec: Annotated[JsonObject, BeforeValidator(_as_json)] = Field(description="the run file")
    participants: list[str] = Field(description="names of the agents that take part, the first hundred of them")
    participant_count: int = 0
    notes: list[str] = Field(description="what was found when it was prepared: which parts of the model were made afresh, and why")
    readiness: dict[str, int] = Field(description="agents that it is open to by their standing, until it ends")
    files: list[FileRef] = Field(description="configuration and tokenizer")
    blocks: list[BlockView]
    rounds: list[RoundView] = Field(description="the newest rounds, the newest first")
    current: list[AssignmentView] = Field(description="assignments of the newest round")
    evaluations: list[EvaluationView] = Field(description="the newest hundred, the newest last")
    worst_labels: list[LabelScore] = Field([], description="of the newest score: the labels with the lowest recall, five at the most")
    bytes: BytesView
    conclusion: Conclusion | None = Field(
        None, description="with which candidate it ended; null: with its last version, there was no other"
    )
    anchor: AnchorView | None = Field(None, description="the run that trains its head alone, if somebody has created one")
    anchor_of: str | None = Field(None, description="name of the run whose anchor this one is")
    pending_jobs: int
    failed_measurements: int = Field(description="scores, losses and fidelities that could not be measured; events say why")
    seconds_left: float | None = Field(description="at the pace of the last rounds; null: it is not known, or the run stands still")
    pace: PaceView | None = Field(None, description="how fast it gets on, and why it stands still if it does; null: an older coordinator")
    events: list[EventView]


class MemberView(BaseModel):
    """Where an agent stands with a run that it may take part in."""

    agent: str
    standing: str = Field(
        description="ready: it is there, and its data fit; unheard: it is there and has not said; unfit: its data do not fit; silent; "
        "never_seen; quarantined: it is asked for nothing for a while"
    )
    takes_part: bool = Field(description="it is there, and has not said that its data do not fit")
    participant: bool = Field(False, description="the run counts on it: since its start, or since it came")
    reason: str | None = Field(description="why it takes no work, as a code")
    rows: int | None = Field(description="its rows for the run: as many or more, exactly as many if `exact`; null: it does not say")
    exact: bool
    last_seen_at: datetime | None


class LeaseView(BaseModel):
    run: str
    round: int
    block: str
    agent: str
    attempt: int
    expires_at: datetime | None
    progressed_at: datetime | None = Field(None, description="when it was last seen to get on")
    progress: Progress | None


class JobView(BaseModel):
    """A job that is under way."""

    kind: str
    of: str = Field(description="name of the run or model that it is for")
    owner: str = Field(description="id of the coordinator process that does it")
    tries: int = Field(description="how often it was begun")
    seconds: float = Field(description="since it was begun")
    cpu_s: float = Field(description="processor seconds that its engine has used")
    still_s: float = Field(description="since its engine was last seen to use the processor: a large number is an engine that hangs")


class AlarmView(BaseModel):
    """What needs somebody: several of a kind are one."""

    level: str = Field(description="warning or error")
    code: str = Field(
        description="run_paused, run_stands_still, run_failed, agents_silent, agents_quarantined, deltas_rejected, disk_full, "
        "jobs_failed or engine_hangs"
    )
    message: str
    advice: str = Field(description="what to do about it")
    count: int
    run: str | None = Field(None, description="name of the run that it is about")
    run_id: str | None = None
    since: datetime | None = None


class StatusView(BaseModel):
    version: str
    signing_key: str | None = Field(None, description="fingerprint of the key that provenance files are signed with")
    now: datetime
    waiting_claims: int = Field(description="agents that wait for work right now, at all coordinators on the database")
    coordinators: int = Field(1, description="that live on the database, this one with them")
    engines: int = Field(0, description="`fedcoord engine` that live on the database")
    runs: list[RunSummary] = Field(description="the newest fifty")
    agents_by_state: dict[str, int] = {}
    agents: list[AgentView] = Field(description="the first fifty by name")
    training: int = Field(0, description="assignments that are leased")
    leases: list[LeaseView] = Field(description="the first hundred of them")
    bytes: BytesView
    jobs: dict[str, int] = Field(description="jobs by state: those that wait, run or have failed")
    running_jobs: list[JobView]
    last_errors: list[EventView]
    alarms: list[AlarmView] = Field([], description="what needs somebody, the worst first")
