"""Who an agent is, by its key."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent, Assignment
from fedcybgd.coordinator.domain.agent import AgentState, needs_seen
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.errors import Forbidden, Unauthorized
from fedcybgd.coordinator.services.records import keys
from fedcybgd.shared.contract.agents import DeclaredLimits


class AgentRevoked(Forbidden):
    code = "agent_revoked"


@dataclass(frozen=True)
class Identity:
    id: str
    name: str


@dataclass(frozen=True)
class Glance:
    """Who is asking, and whether a claim could find something or has something to write down."""

    agent: Identity
    worth_a_claim: bool
    limits: DeclaredLimits
    """as the agent declared them last"""


def authenticate(session: Session, key: str) -> Identity:
    row = session.execute(select(Agent.id, Agent.name, Agent.state).where(Agent.key_hash == keys.key_hash(key))).one_or_none()
    return _known(row)


def glance(session: Session, key: str, now: datetime) -> Glance:
    """Authenticate, and look for work, in one statement: a thousand idle agents ask again and again."""
    held = exists().where(Assignment.state == AssignmentState.LEASED, Assignment.agent_id == Agent.id)
    pending = exists().where(Assignment.state == AssignmentState.PENDING)
    columns = (Agent.id, Agent.name, Agent.state, Agent.last_seen_at, Agent.limits, held.label("held"), pending.label("pending"))
    row: Any = session.execute(select(*columns).where(Agent.key_hash == keys.key_hash(key))).one_or_none()
    agent = _known(row)
    return Glance(agent, row.held or row.pending or needs_seen(row.state, row.last_seen_at, now), row.limits)


def _known(row: Any) -> Identity:
    if row is None:
        raise Unauthorized("this needs an agent's key (Authorization: Bearer fca_…); enrol with `fedagent enroll`")
    if row.state == AgentState.REVOKED:
        raise AgentRevoked(f"agent {row.name} was revoked by the operator")
    return Identity(row.id, row.name)


def rotate_key(session: Session, agent_id: str) -> str:
    """A new key for an agent; the old one is void at once."""
    key = keys.new_key(keys.AGENT)
    session.get_one(Agent, agent_id).key_hash = keys.key_hash(key)
    return key
