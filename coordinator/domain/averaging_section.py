"""What a run file says of averaging over the agents of a round."""

from typing import Literal

from pydantic import Field, model_validator

from fedcybgd.coordinator.domain.section import Section


class OuterSection(Section):
    learning_rate: float = Field(1.0, gt=0, le=10, description="factor on the mean of the deltas when it is added")
    momentum: float = Field(
        0.0, ge=0, lt=1, description="share of a round's step that the next round takes again; the coordinator keeps it"
    )
    nesterov: bool = Field(False, description="the step looks ahead by the momentum (Nesterov)")

    @model_validator(mode="after")
    def _nesterov_has_a_momentum(self) -> "OuterSection":
        if self.nesterov and not self.momentum:
            raise ValueError("`nesterov` looks ahead by the momentum: give one that is not 0")
        return self


class AveragingSection(Section):
    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the agents that train in a round, rounded, at least one: drawn anew for each round from the seed",
    )
    weights: Literal["rows", "equal"] = Field(
        "rows",
        description="what a delta weighs in the mean: as many as the rows that its visit trained on, as its agent says; or all alike",
    )
    outer: OuterSection = Field(OuterSection(), description="the coordinator's own optimizer, which takes the mean for its gradient")


class WholeSection(AveragingSection):
    """Of whole models."""
