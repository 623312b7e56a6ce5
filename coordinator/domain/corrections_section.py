"""What a run file says of corrections."""

from typing import Annotated

from pydantic import Field

from fedcybgd.coordinator.domain.section import Section
from fedcybgd.shared.contract.words import CorrectedLayers


class CorrectionsSection(Section):
    rank: int = Field(4, ge=1, le=1 << 16, description="of each correction: how many rows and columns its two factors have")
    alpha: float = Field(16.0, gt=0, le=1e6, description="what a correction comes to counts alpha / rank times")
    layers: CorrectedLayers = Field(
        "all",
        description="of which layers that a visit does not train: all that the run trains; or those above its lowest trained block, which "
        "its gradients pass through anyway",
    )
    matrices: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        ["linear"],
        min_length=1,
        max_length=64,
        description="beside which matrices of these layers: linear for all, attention, or modules by their last names (query, mlp.*)",
    )
    learning_rate: float = Field(
        2e-3, gt=0, lt=10, description="of the factors, in the first cycle; `train.learning_rate_decay` is theirs, too"
    )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank
