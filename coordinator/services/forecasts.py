"""Plans a run before it begins: what it will ask of every enrolled agent, from the added model or from the prepared run."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db import queries
from coordinator.db.models import Agent, Block, EncodedShard, Model, Run
from coordinator.domain import forecast
from coordinator.domain.agent import AgentState
from coordinator.domain.block_shapes import BlockShape, blocks_of_run
from coordinator.domain.block_shapes import Model as ModelSizes
from coordinator.domain.compression import Budget, Costs
from coordinator.domain.forecast import AgentFacts, AgentForecast, Moved, VisitForecast
from coordinator.domain.run_file import RunFile
from coordinator.services import models


class BytesMoved(BaseModel):
    down: int = Field(description="bytes that the agent fetches")
    up: int = Field(description="bytes that it sends")


class VisitPlan(BaseModel):
    block: str = Field(description="the visited block")
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
        description="revoked, not_in_run, memory_limit, nothing_fits, disk_limit, exposure_budget or no_agents, if it cannot"
    )
    message: str | None
    visits: list[VisitPlan]
    visits_per_cycle: float
    memory_largest: int | None = Field(description="peak of its largest visit, in bytes")
    memory_mean: int | None = Field(description="mean peak of its visits")
    memory_needed: int = Field(description="bytes of the training process in its largest visit, the interpreter with them")
    memory_allowed: int | None = Field(description="declared limit, else the memory of the device")
    disk_needed: int = Field(description="bytes of shards that its largest visit keeps in the cache")
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
    agents: list[AgentPlan]


def plan_run(session: Session, spec: RunFile, tokens_per_s: float | None = None, rows: int | None = None) -> PlanView:
    """What the run of this run file will ask of the agents that are enrolled now. Nothing is changed.

    Raises `NotFound` or `ModelNotReady` for its model, `PlanRefused` and `PartitionError` for blocks that the model does not have.
    """
    model = models.by_name(session, spec.model)
    if model.state != "ready":
        raise models.ModelNotReady(f"model {spec.model!r} is not ready: {model.reason or 'it is still being added'}")
    run = _prepared_run(session, spec, model)
    if run is not None:
        rows_of_blocks = queries.blocks_of(session, run.id)
        blocks, visited = shapes(rows_of_blocks, _known(session, [b.digest for b in rows_of_blocks])), list(run.trained_blocks)
    else:
        blocks, visited = blocks_of_run(spec, model.config, _of_model(session, model))
    files = sum(file["size"] for file in (run.files if run is not None else model.files))
    agents = [facts_of(agent) for agent in queries.agents(session)]
    found = forecast.forecast(spec, ModelSizes.of(model.config), blocks, visited, agents, files, tokens_per_s, rows)
    return PlanView(
        run=spec.name, model=model.name, prepared=run is not None, rounds=found.rounds, visited=found.visited, problems=found.problems,
        hours=found.hours, agents=[_agent(spec, a) for a in found.agents],
    )  # fmt: skip


def costs_for(
    spec: RunFile, config: Mapping[str, Any], blocks: Sequence[Block], trained: Collection[str], agent: Agent | None
) -> tuple[Budget, Costs]:
    """What an agent allows, and what a plan for a run's blocks costs it: for `compression.plan`, policy `auto` above all.

    `config` is the model's (`Model.config`). Sizes are estimated from shapes: the answer is the same whatever was encoded already.
    """
    agent_facts = facts_of(agent) if agent is not None else AgentFacts("")
    return forecast.budget_of(spec, agent_facts), forecast.costs_of(spec, ModelSizes.of(config), shapes(blocks), trained, agent_facts)


def facts_of(agent: Agent) -> AgentFacts:
    limits, device = agent.limits or {}, agent.device or {}
    kind = device.get("kind", "cpu")
    return AgentFacts(
        agent.name, agent.state == AgentState.REVOKED, "cpu" if kind in ("auto", "") else kind, limits.get("memory_bytes") or 0,
        device.get("accelerator_bytes" if kind == "cuda" else "memory_bytes") or 0, limits.get("bytes_per_s") or 0,
        limits.get("disk_bytes") or 0,
    )  # fmt: skip


def shapes(blocks: Sequence[Block], known: Mapping[str, dict[str, tuple[int, int]]] | None = None) -> list[BlockShape]:
    """The blocks of a run as the domain sees them; `known` is digest → codec → (bytes, bytes packed)."""
    return [
        BlockShape(
            b.name, b.kind, {t["name"]: tuple(t["shape"]) for t in b.tensors}, _itemsize(b.size, b.num_parameters),
            (known or {}).get(b.digest, {}), b.version, b.influence,
        )
        for b in blocks
    ]  # fmt: skip


def _prepared_run(session: Session, spec: RunFile, model: Model) -> Run | None:
    """The newest run of this name, if it is prepared and has the same blocks and head."""
    run = session.scalar(select(Run).where(Run.name == spec.name, Run.model_id == model.id).order_by(Run.created_at.desc()).limit(1))
    if run is None or not run.prepared:
        return None
    other = RunFile.model_validate(run.spec)
    same = (other.task.kind, other.task.num_labels, other.schedule.layers_per_block, other.schedule.blocks, other.schedule.always) == (
        spec.task.kind, spec.task.num_labels, spec.schedule.layers_per_block, spec.schedule.blocks, spec.schedule.always,
    )  # fmt: skip
    return run if same else None


def _of_model(session: Session, model: Model) -> list[BlockShape]:
    known = _known(session, [b["digest"] for b in model.blocks])
    return [
        BlockShape(
            b["name"], b["kind"], {t["name"]: tuple(t["shape"]) for t in b["tensors"]}, _itemsize(b["size"], b["num_parameters"]),
            known.get(b["digest"], {}),
        )
        for b in model.blocks
    ]  # fmt: skip


def _itemsize(size: int, parameters: int) -> int:
    return 4 if size >= 3 * parameters else 2


def _known(session: Session, digests: Sequence[str]) -> dict[str, dict[str, tuple[int, int]]]:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for row in session.scalars(select(EncodedShard).where(EncodedShard.source.in_(digests))):
        found.setdefault(row.source, {})[row.codec] = (row.size, row.packed_size)
    return found


def _agent(spec: RunFile, found: AgentForecast) -> AgentPlan:
    peaks = [visit.memory.peak for visit in found.visits if visit.memory is not None]
    return AgentPlan(
        name=found.agent.name, able=found.why_not is None, reason=found.why_not[0] if found.why_not else None,
        message=found.why_not[1] if found.why_not else None, visits=[_visit(v) for v in found.visits],
        visits_per_cycle=found.visits_per_cycle, memory_largest=max(peaks, default=None),
        memory_mean=sum(peaks) // len(peaks) if peaks else None, memory_needed=found.memory_needed,
        memory_allowed=forecast.budget_of(spec, found.agent).memory_bytes, disk_needed=found.disk, first_cycle=_moved(found.first_cycle),
        later_cycle=_moved(found.later_cycle) if found.later_cycle else None, whole_run=_moved(found.whole_run),
        training_hours=found.training_hours, transfer_hours=found.transfer_hours,
    )  # fmt: skip


def _visit(found: VisitForecast) -> VisitPlan:
    return VisitPlan(
        block=found.block, memory_bytes=found.memory.peak if found.memory else None,
        memory_parts={name: size for name, size in found.memory.parts.items() if size} if found.memory else {},
        codecs={codec: list(names) for codec, names in found.codecs.items()}, down=found.down, up=found.up, why_not=found.why_not,
    )  # fmt: skip


def _moved(moved: Moved) -> BytesMoved:
    return BytesMoved(down=moved.down, up=moved.up)
