"""Takes an agent's key back, and what it holds."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.services.path import lease
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import agents as states


def revoke(session: Session, name_or_id: str, now: datetime) -> Agent:
    """Shut an agent out at once; what it holds goes back."""
    agent = queries.agent_by_name(session, name_or_id)
    lease.hold_runs(session, agent.id)
    states.revoke(agent)
    lease.release_all(session, agent.id, now)
    signals.forget(session, agent.id)
    signals.invite(session, [agent.id])  # a claim that waits is told at once
    record(session, now, "warning", "agent_revoked", f"agent {agent.name} was revoked", agent_id=agent.id)
    return agent
