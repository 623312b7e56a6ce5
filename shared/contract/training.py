"""How a visit trains, and what it reports of itself."""

from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from fedcybgd.shared.contract.adapters import MOST_MATRICES
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.words import (
    MOST_BLOCKS,
    MOST_LABELS,
    MOST_STEPS,
    AgentMessage,
    Count,
    HeadStart,
    LabelSkew,
    Name,
    Optimizer,
    Precision,
)


class ParameterGroup(BaseModel):
    """Blocks that are trained in a visit with one learning rate."""

    blocks: list[Name] = Field(max_length=MOST_BLOCKS)
    learning_rate: float = Field(gt=0, le=1e6, allow_inf_nan=False)


class Training(BaseModel):
    """How a visit trains, as the run file says it and as an agent is told it: a field that is added here reaches both."""

    model_config = ConfigDict(frozen=True)
    steps: int | None = Field(None, ge=1, le=MOST_STEPS, description="local steps of a visit; instead of `epochs`")
    epochs: float | None = Field(
        None, gt=0, le=1000, allow_inf_nan=False, description="local passes over an agent's rows; 1 if neither is given"
    )
    batch_size: int = Field(16, ge=1, le=65536, description="rows or windows of a step")
    warmup_steps: int = Field(5, ge=0, lt=2**31, description="steps over which the learning rate rises at the beginning of each visit")
    weight_decay: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False, description="of AdamW")
    max_grad_norm: float | None = Field(
        1.0, gt=0, le=1e30, allow_inf_nan=False, description="the gradient is scaled down to this norm; null: never"
    )
    precision: Precision = Field("auto", description="auto: bfloat16 where the device computes in it natively, else float32")
    optimizer: Optimizer = Field("adamw", description="adamw-8bit keeps its two moments in 8 bits; agents need bitsandbytes for it")


class Corrections(BaseModel):
    """Of an expanded visit: beside which matrices of blocks that are frozen factors are trained, which are merged into them afterwards."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    rank: int = Field(ge=1, le=1 << 16)
    scale: float = Field(gt=0, le=1e6, description="how often counts the product of two factors")
    learning_rate: float = Field(gt=0, le=1e6)
    matrices: list[Annotated[str, StringConstraints(max_length=500)]] = Field(
        min_length=1, max_length=MOST_MATRICES, description="canonical names of the weights"
    )


class TrainSettings(Training, TaskSpec):
    """One visit: which blocks are trained, and how."""

    groups: list[ParameterGroup] = Field(max_length=MOST_BLOCKS)
    corrections: Corrections | None = Field(None, description="what is trained of blocks that are frozen; null: nothing")
    label_skew: LabelSkew = Field("none", description="what the loss does about labels that the agent's rows have seldom or never")
    head_start: HeadStart = Field(
        "fresh", description="class_means: rows of the head that are zero are first set to the means of the agent's own rows"
    )
    seed: int = Field(ge=0, lt=2**64, description="from (run, round, block), never from the attempt")

    @model_validator(mode="after")
    def _each_block_once(self) -> Self:
        if len(set(self.trained)) < len(self.trained):
            raise ValueError("a block is trained in one group")
        return self

    @property
    def trained(self) -> tuple[str, ...]:
        """The blocks that are trained, the visited one first."""
        return tuple(name for group in self.groups for name in group.blocks)

    @property
    def corrected(self) -> tuple[str, ...]:
        """The matrices of frozen blocks that are corrected, in the order of the model."""
        return tuple(self.corrections.matrices) if self.corrections is not None else ()


class TrainMetrics(AgentMessage):
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
    label_counts: list[Count] | None = Field(
        None, max_length=MOST_LABELS, description="of each label, on how many rows the visit trained; null: the owner does not say"
    )

    @field_validator("started_at")
    @classmethod
    def _has_a_zone(cls, value: datetime | None) -> datetime | None:
        """It is compared with the coordinator's times, which have one."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value
