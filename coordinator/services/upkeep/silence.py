"""Agents that are not heard of any more: others may have what was meant for them."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.services.path import lease
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import agents as states


def silence(session: Session, before: datetime) -> None:
    """Mark the active agents silent that were not seen since `before`."""
    for agent in session.scalars(select(Agent).where(Agent.state == AgentState.ACTIVE, Agent.last_seen_at < before)):
        states.missed(agent)
        record(session, "warning", "agent_silent", f"agent {agent.name} has not been seen since {agent.last_seen_at}", agent_id=agent.id)
        lease.leave_to_others(session, agent.id)
