"""What a run file says of averaging whole models."""

from typing import Literal

from pydantic import Field

from fedcybgd.coordinator.domain.section import Section


class WholeSection(Section):
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
