"""What a run file says of adapters."""

from typing import Annotated, Literal

from pydantic import Field

from fedcybgd.coordinator.domain.averaging_section import AveragingSection


class AdaptersSection(AveragingSection):
    matrices: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        ["linear"],
        min_length=1,
        max_length=64,
        description="beside which matrices of the layers: linear for all, attention, or modules by their last names (query, mlp.*)",
    )
    rank: int = Field(8, ge=1, le=1 << 16, description="of each adapter: how many rows and columns its two factors have")
    alpha: float = Field(16.0, gt=0, le=1e6, description="what an adapter computes counts alpha / rank times")
    combine: Literal["mean", "exact", "handed"] = Field(
        "mean",
        description="mean: of the factors that the agents of a round trained; exact: and what that leaves out of the mean of their products "
        "is added to the frozen matrices; handed: one agent a round, which goes on from the one before",
    )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank
