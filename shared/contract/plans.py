"""What `fedcoord plan` and `POST /v1/plan` answer."""

from pydantic import BaseModel, Field


class BytesMoved(BaseModel):
    down: int = Field(description="bytes that the agent fetches")
    up: int = Field(description="bytes that it sends")


class VisitPlan(BaseModel):
    block: str = Field(description="the visited block, or the first of several")
    blocks: list[str] = Field(description="all that the visit trains, but for those that are trained along in every visit")
    memory_bytes: int | None = Field(
        description="estimated peak of the training process, as a visit reports it; null: the visit is for others"
    )
    memory_parts: dict[str, int] = Field(description="what the peak is made of")
    codecs: dict[str, list[str]] = Field(description="codec: blocks, in model order")
    down: int = Field(description="bytes fetched for the first visit of this block by this agent")
    up: int = Field(description="bytes sent after it")
    why_not: str | None = Field(description="why the visit is not for this agent")


class AgentPlan(BaseModel):
    name: str
    able: bool = Field(description="whether it can take part at all")
    reason: str | None = Field(
        description="revoked, not_in_run, memory_limit, disk_limit, nothing_fits, exposure_budget or no_agents, if it cannot"
    )
    message: str | None
    visits: list[VisitPlan]
    visits_per_cycle: float
    memory_largest: int | None = Field(description="peak of its largest visit, in bytes")
    memory_mean: int | None = Field(description="mean peak of its visits")
    memory_needed: int = Field(description="bytes of the training process in its largest visit, the interpreter with them")
    memory_allowed: int | None = Field(description="declared limit, else the memory of the device")
    disk_needed: int = Field(description="bytes of shards that its largest visit keeps in the cache")
    disk_allowed: int | None = Field(None, description="declared limit; null: it declared none")
    first_cycle: BytesMoved
    later_cycle: BytesMoved | None = Field(description="mean of the cycles after the first; null: there are none")
    whole_run: BytesMoved
    training_hours: float | None = Field(description="at the given speed; null: the speed, or the number of rows, was not given")
    transfer_hours: float | None = Field(description="at the declared speed of its line; null: it declared none")


class PlanView(BaseModel):
    run: str
    model: str
    prepared: bool = Field(description="a prepared run of this name was looked at: sizes of shards are known, not estimated")
    rounds: int
    visited: list[str] = Field(description="blocks that are visited in a cycle, in model order")
    problems: list[str] = Field(description="what stands against the run as a whole")
    hours: float | None = Field(description="of the whole run, training and transfers; null: not known")
    at_once: int = Field(0, description="visits that are made at the same time, each by another agent, from the second cycle on")
    first_cycle_down: int = Field(0, description="bytes that all agents together fetch in the first cycle")
    first_cycle_down_once: int = Field(0, description="of these, what leaves the coordinator where all agents share one site cache")
    agents: list[AgentPlan]
