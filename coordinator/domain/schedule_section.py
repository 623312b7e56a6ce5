"""What a run file says of its schedule: which blocks, in which order, by whom."""

from typing import Any, Literal

from pydantic import Field, model_validator

from fedcybgd.coordinator.domain.aggregate import HeadAverage
from fedcybgd.coordinator.domain.section import Section
from fedcybgd.shared.contract.words import MOST_STEPS, HeadStart


class FirstCycleSection(Section):
    wave: int | None = Field(None, ge=1, le=10_000, description="blocks of a round in the first cycle; default: schedule.wave")
    damping: float | None = Field(
        None, gt=0, le=1, description="factor on the deltas of a round in the first cycle; default: schedule.damping"
    )
    steps: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="local steps of a visit in the first cycle; default: what `train` says of steps and epochs"
    )
    epochs: float | None = Field(
        None, gt=0, le=1000, allow_inf_nan=False, description="local passes over an agent's rows in the first cycle, instead of `steps`"
    )

    def instead(self, *fields: str) -> dict[str, Any]:
        """Those of these fields that are said."""
        return {name: value for name in fields if (value := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _says_something(self) -> "FirstCycleSection":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give `steps` or `epochs`, not both")
        if not self.instead(*type(self).model_fields):
            raise ValueError("it says nothing: give `wave`, `damping`, `steps` or `epochs`, or leave it out")
        return self


class ScheduleSection(Section):
    cycles: int = Field(1, ge=1, le=10_000, description="passes in which every trained block is visited once")
    order: Literal["ascending", "descending", "random", "importance"] = Field(
        "ascending",
        description="of the blocks in a cycle; random is drawn from the seed; importance: those first along which the loss of the calibration "
        "rows is steepest, measured once before the first round",
    )
    agents: Literal["fixed", "rotating", "first_come"] = Field(
        "rotating", description="who trains which block: always the same agent (the paper), another one each cycle, or who asks first"
    )
    blocks: list[str] = Field(["all"], min_length=1, description="which blocks are trained: names, layers, layers.2-5, all")
    always: list[str] = Field([], description="blocks that are trained along in every visit; a fresh head must be")
    layers_per_block: int = Field(1, ge=1, le=10_000, description="how many consecutive layers make one block")
    reassign_after_s: float = Field(
        300, ge=0, le=10 * 366 * 86_400, description="how long a visit waits for its own agent before another may take it"
    )
    wave: int = Field(
        1, ge=1, le=10_000, description="blocks of a round, trained at once by as many agents; 1: the strict cycle of the paper"
    )
    damping: float = Field(1.0, gt=0, le=1, description="factor on the deltas of a round when they are applied")
    first_cycle: FirstCycleSection | None = Field(
        None, description="what is otherwise in the first cycle: short visits in wide waves, say, before long ones; nothing, if left out"
    )
    head_average: HeadAverage | None = Field(
        None,
        description="how a head is put together that a wave trains along; default: by_label for classification, else damped",
    )
    head_start: HeadStart = Field(
        "fresh",
        description="what a classifier's fresh head begins as; class_means: in a round before the first cycle each agent sets its labels' rows to the "
        "means of its rows",
    )
    wave_deadline_s: float | None = Field(
        None,
        gt=0,
        le=366 * 86_400,
        description="how long a round waits for its last deltas once it has one; those that came are applied then",
    )
    max_attempts: int = Field(
        5,
        ge=1,
        le=1000,
        description="failed attempts and rejections of one visit before the run is paused, once nobody is left who has not failed at it",
    )

    @property
    def rounds_before(self) -> int:
        """Rounds before the first cycle, which is counted with it."""
        return int(self.head_start != "fresh")

    @property
    def widest(self) -> int:
        """Blocks of the largest wave that any cycle has."""
        return max(self.wave, (self.first_cycle.wave if self.first_cycle else None) or self.wave)
