"""Ends the quarantine of an agent that the operator trusts again."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import agents as states


def release(session: Session, name_or_id: str, now: datetime) -> Agent:
    """Hold nothing against an agent any more, and ask it at once."""
    agent = queries.agent_by_name(session, name_or_id)
    states.absolve(agent)
    signals.invite(session, [agent.id])
    record(session, now, "info", "agent_released", f"agent {agent.name} was released from quarantine", agent_id=agent.id)
    return agent
