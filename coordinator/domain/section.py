"""What all sections of a run file have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    # JSON, in which runs are kept and shown, has neither NaN nor infinity.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)
