"""Where a run stands and why, for people and for programs: what it waits for, and what about it is unusual."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field


class WaitView(BaseModel):
    """One thing that a run waits for, and what would end the waiting."""

    kind: Literal["lease", "delta", "agent", "job", "operator"] = Field(
        description="lease: an agent trains; delta: one is judged or applied; agent: work that nobody has; job: the engine; operator: a person"
    )
    text: str = Field(description="one sentence, for people")
    advice: str | None = Field(None, description="what somebody can do about it, with the command; null: it passes by itself")
    agent: str | None = None
    block: str | None = None
    round: int | None = None
    until: datetime | None = Field(None, description="when the lease ends unless it is renewed, or somebody else may stand in")


class SymptomView(BaseModel):
    """Something unusual about a run."""

    code: str
    level: Literal["note", "warning", "alarm"]
    evidence: str = Field(description="what was seen")
    advice: str = Field(description="what to do about it")
    threshold: str = Field(description="from when on it counts, and where that number comes from")


class ExplanationView(BaseModel):
    """Where a run stands, why, and what is unusual about it."""

    id: str
    run: str = Field(description="its name")
    state: str
    since: datetime | None = Field(description="when it came to be in that state; null: that was before it was written down")
    text: str = Field(description="one sentence, for people")
    advice: str | None = Field(None, description="what would let it go on, where a person must do something")
    rounds_done: int
    rounds_total: int
    waits: list[WaitView] = Field(description="what it waits for, as of now")
    symptoms: list[SymptomView] = Field(description="alarms first")
