"""Signs of life."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.domain.agent import AgentState, needs_seen
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.coordinator.services.agents.identity import AgentRevoked
from fedcybgd.coordinator.services.states import agents as states


def seen(session: Session, agent_id: str, now: datetime) -> None:
    """Note a sign of life. Raises `AgentRevoked` for an agent that was revoked while its call waited."""
    agent = session.get_one(Agent, agent_id)
    if agent.state == AgentState.REVOKED:
        raise AgentRevoked(f"agent {agent.name} was revoked by the operator")
    if needs_seen(agent.state, agent.last_seen_at, now):
        states.seen(agent, now)


def by_name(session: Session, name_or_id: str) -> Agent:
    agent = session.scalar(select(Agent).where((Agent.name == name_or_id) | (Agent.id == name_or_id)))
    if agent is None:
        raise NotFound(f"there is no agent {name_or_id!r}")
    return agent
