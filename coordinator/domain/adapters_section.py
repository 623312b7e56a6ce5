"""What a run file says of adapters."""

from typing import Literal

from pydantic import Field

from fedcybgd.coordinator.domain.averaging_section import AveragingSection


class AdaptersSection(AveragingSection):
    matrices: list[str] = Field(
        ["linear"],
        min_length=1,
        description="beside which matrices of the layers: linear for all, attention, or modules by their last names (query, mlp.*)",
    )
    rank: int = Field(8, ge=1, le=1 << 16, description="of each adapter: how many rows and columns its two factors have")
    alpha: float = Field(16.0, gt=0, le=1e6, description="what an adapter computes counts alpha / rank times")
    combine: Literal["mean", "handed"] = Field(
        "mean",
        description="mean: of the factors that the agents of a round trained; handed: one agent a round, which goes on from the one before",
    )
