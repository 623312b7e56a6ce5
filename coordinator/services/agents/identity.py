"""Who an agent is, by its key."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Agent, Assignment
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.errors import Forbidden, Unauthorized
from fedcybgd.coordinator.services.records import keys
from fedcybgd.shared.contract.agents import DeclaredLimits


class AgentRevoked(Forbidden):
    code = "agent_revoked"


@dataclass(frozen=True)
class Identity:
    """Whose a key is, and what a claim of it needs to know."""

    id: str
    name: str
    state: str
    limits: DeclaredLimits
    """as the agent declared them last"""
    last_seen_at: datetime | None
    holds: bool
    """it holds a lease"""


def look_up(session: Session, key_hash: str) -> Identity:
    holds = exists().where(Assignment.state == AssignmentState.LEASED, Assignment.agent_id == Agent.id)
    columns = (Agent.id, Agent.name, Agent.state, Agent.limits, Agent.last_seen_at, holds)
    row = session.execute(select(*columns).where(Agent.key_hash == key_hash)).one_or_none()
    if row is None:
        raise Unauthorized("this needs an agent's key (Authorization: Bearer fca_…); enrol with `fedagent enroll`")
    found = Identity(*row)
    admit(found)
    return found


def admit(agent: Identity | Agent) -> None:
    """Raises `AgentRevoked` for one that was shut out."""
    if agent.state == AgentState.REVOKED:
        raise AgentRevoked(f"agent {agent.name} was revoked by the operator")


def rotate_key(session: Session, agent_id: str) -> str:
    """A new key for an agent; the old one is void at once."""
    key = keys.new_key(keys.AGENT)
    session.get_one(Agent, agent_id).key_hash = keys.key_hash(key)
    signals.forget(session, agent_id)
    signals.let_go(session, agent_id)  # a claim that waits was made with the old one
    return key
