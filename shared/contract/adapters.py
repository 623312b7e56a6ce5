"""Adapters (LoRA, arXiv 2106.09685): two thin factors beside a matrix that stays as it is; what is trained is their product. Without torch."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fedcybgd.shared.contract.errors import FedError

ADAPTERS = "adapters"
"""The block of all factors"""
FIELD = "fedcybgd_adapters"
"""Field of a run's config.json that says which matrices have some; an added model and an export have none."""
LEFT, RIGHT = "adapter_left", "adapter_right"
"""A matrix W counts as W + alpha / rank · LEFT·RIGHT: LEFT has its rows and RIGHT its columns, whichever of them are the inputs."""
WEIGHT = ".weight"
MOST_MATRICES = 100_000


class AdaptersRefused(FedError):
    """A model that has no such matrices, or too small ones."""

    code = "run_refused"


class Adapters(BaseModel):
    """The adapters of a run's model."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    rank: int = Field(ge=1, le=1 << 16)
    alpha: float = Field(gt=0, le=1e6)
    matrices: list[Annotated[str, StringConstraints(max_length=500)]] = Field(min_length=1, max_length=MOST_MATRICES)
    """canonical names of the weights"""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def factors_of(weight: str) -> tuple[str, str]:
    """The names of the two factors beside a weight."""
    module = weight.removesuffix(WEIGHT)
    return f"{module}.{LEFT}", f"{module}.{RIGHT}"


def matrix_of(factor: str) -> str:
    """The name of the weight that a factor is beside."""
    return f"{factor.rpartition('.')[0]}{WEIGHT}"


def is_factor(name: str) -> bool:
    return name.rpartition(".")[2] in (LEFT, RIGHT)


def select(patterns: Sequence[str], rank: int, weights: Mapping[str, Sequence[int]], section: str = ADAPTERS) -> list[str]:
    """Which of the linear weights of the layers (name → shape, in model order) get factors of this rank.

    `linear` means all, `attention` those of attention, another pattern a module by its last names: `query`, `mlp.*`. Raises
    `AdaptersRefused`, which names the field of this section of the run file.
    """
    if not weights:
        raise AdaptersRefused(f"{section}.matrices: the layers of this model have no linear matrix that factors could be beside")
    names = ", ".join(dict.fromkeys(name.removesuffix(WEIGHT).rpartition(".")[2] for name in weights))
    for pattern in patterns:
        if not any(_means(pattern, name) for name in weights):
            raise AdaptersRefused(f"{section}.matrices: {pattern!r} means no linear matrix of the layers of this model; there are {names}")
    found = [name for name in weights if any(_means(pattern, name) for pattern in patterns)]
    least = min(found, key=lambda name: min(weights[name]))
    if rank > min(weights[least]):
        shape = " × ".join(map(str, weights[least]))
        raise AdaptersRefused(
            f"{section}.rank is {rank}, which is above the rank that {least} ({shape}) can have: {min(weights[least])} at the most"
        )
    return found


def _means(pattern: str, weight: str) -> bool:
    module = weight.removesuffix(WEIGHT)
    if pattern == "linear":
        return True
    if pattern == "attention":
        return any("attn" in part or "attention" in part for part in module.lower().split("."))
    return fnmatchcase(module, pattern) or fnmatchcase(module, f"*.{pattern}")
