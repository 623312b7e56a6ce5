"""What the coordinator makes of a mean of deltas before it is added: an optimizer of its own, with momentum over rounds."""

from pydantic import BaseModel, ConfigDict


class Outer(BaseModel):
    """One step of the outer optimizer, for each number of a block: velocity ← momentum · velocity + mean; block ← block + learning_rate · step.

    The step is the velocity, or with `nesterov` the mean + momentum · velocity. A block's first velocity is zero.
    """

    model_config = ConfigDict(frozen=True)
    learning_rate: float
    momentum: float
    nesterov: bool
