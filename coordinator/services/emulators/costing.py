"""What a plan of codecs costs an agent: the facts that the planner goes by, from the database's rows."""

from collections.abc import Collection, Mapping, Sequence

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent, Block, EncodedShard
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.compression import AgentLimits, Costs
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning import forecast
from fedcybgd.coordinator.planning.forecast import AgentFacts
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape


def costs_for(
    spec: RunFile, config: Mapping[str, JsonValue], blocks: Sequence[Block], trained: Collection[str], agent: Agent | None
) -> tuple[AgentLimits, Costs]:
    """What an agent allows, and what a plan for a run's blocks costs it: for `compression.plan`, policy `auto` above all.

    `config` is the model's (`Model.config`). Sizes are estimated from shapes: the answer is the same whatever was encoded already.
    """
    agent_facts = facts_of_agent(agent) if agent is not None else AgentFacts("")
    return forecast.limits_of(spec, agent_facts), forecast.costs_of(spec, ModelShape.of(config), shapes(blocks), trained, agent_facts)


def facts_of_agent(agent: Agent) -> AgentFacts:
    limits, device = agent.limits, agent.device
    return AgentFacts(
        agent.name, agent.state == AgentState.REVOKED, "cpu" if device.kind in ("auto", "") else device.kind, limits.memory_bytes,
        device.accelerator_bytes if device.kind == "cuda" else device.memory_bytes, limits.bytes_per_s, limits.disk_bytes,
    )  # fmt: skip


def shapes(blocks: Sequence[Block], known: Mapping[str, dict[str, tuple[int, int]]] | None = None) -> list[BlockShape]:
    """The blocks of a run as the domain sees them; `known` is digest → codec → (bytes, bytes packed)."""
    return [
        BlockShape(
            b.name, b.kind, {t.name: tuple(t.shape) for t in b.tensors}, itemsize(b.size, b.num_parameters),
            (known or {}).get(b.digest, {}), b.changes, b.influence,
        )
        for b in blocks
    ]  # fmt: skip


def itemsize(size: int, parameters: int) -> int:
    return 4 if size >= 3 * parameters else 2


def known_sizes(session: Session, digests: Sequence[str]) -> dict[str, dict[str, tuple[int, int]]]:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for row in session.scalars(select(EncodedShard).where(EncodedShard.source.in_(digests))):
        found.setdefault(row.source, {})[row.codec] = (row.size, row.packed_size)
    return found
