"""Agents: enrolment with one-time tokens, identity by key, signs of life, revocation."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from coordinator.db.models import Agent, Assignment, EnrolmentToken
from coordinator.domain.agent import AGENT, AgentEvent, AgentState, needs_seen
from coordinator.domain.assignment import AssignmentState
from coordinator.errors import Conflict, Forbidden, NotFound, Unauthorized
from coordinator.services import assignments, keys, refusals
from coordinator.services.events import record
from shared.protocol import DeclaredLimits, EnrolAnswer, EnrolRequest


class TokenUnknown(Unauthorized):
    code = "token_unknown"


class TokenExpired(Unauthorized):
    code = "token_expired"


class TokenUsed(Conflict):
    code = "token_used"


class NameTaken(Conflict):
    code = "agent_name_taken"


class AgentRevoked(Forbidden):
    code = "agent_revoked"


@dataclass(frozen=True)
class Identity:
    id: str
    name: str


def create_token(session: Session, now: datetime, holds: timedelta) -> tuple[str, datetime]:
    """A token with which one agent may enrol once, and when it expires."""
    token = keys.new_key(keys.TOKEN)
    expires_at = now + holds
    session.add(EnrolmentToken(id=keys.new_id("tok"), token_hash=keys.key_hash(token), created_at=now, expires_at=expires_at))
    return token, expires_at


def enrol(session: Session, request: EnrolRequest, now: datetime) -> EnrolAnswer:
    """Make an agent of whoever holds a good token. The token is spent only if all goes well."""
    token = session.scalar(select(EnrolmentToken).where(EnrolmentToken.token_hash == keys.key_hash(request.token)).with_for_update())
    if token is None:
        raise TokenUnknown("this enrolment token is not known; copy it whole, or ask the operator for a new one")
    if token.used_at is not None:
        raise TokenUsed("this enrolment token was used already; ask the operator for a new one")
    if token.expires_at <= now:
        raise TokenExpired(f"this enrolment token expired at {token.expires_at:%Y-%m-%d %H:%M} UTC; ask the operator for a new one")
    taken = NameTaken(f"there is an agent named {request.name!r} already; enrol under another name")
    if session.scalar(select(Agent.id).where(Agent.name == request.name)) is not None:
        raise taken
    token.used_at = now
    key = keys.new_key(keys.AGENT)
    agent = Agent(
        id=keys.new_id("agt"), name=request.name, key_hash=keys.key_hash(key), state=AgentState.ENROLLED,
        device=request.device.model_dump(), limits={}, version=request.version, enrolled_at=now,
    )  # fmt: skip
    session.add(agent)
    try:
        session.flush()
    except IntegrityError as error:  # somebody took the name a moment ago
        raise taken from error
    record(session, "info", "agent_enrolled", f"agent {agent.name} enrolled", agent_id=agent.id)
    return EnrolAnswer(agent_id=agent.id, name=agent.name, key=key)


@dataclass(frozen=True)
class Glance:
    """Who is asking, and whether a claim could find something or has something to write down."""

    agent: Identity
    worth_a_claim: bool
    limits: dict[str, Any]
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


def seen(session: Session, agent_id: str, now: datetime) -> None:
    """Note a sign of life. Raises `AgentRevoked` for an agent that was revoked while its call waited."""
    agent = session.get_one(Agent, agent_id)
    if agent.state == AgentState.REVOKED:
        raise AgentRevoked(f"agent {agent.name} was revoked by the operator")
    if needs_seen(agent.state, agent.last_seen_at, now):
        agent.state = AGENT.after(agent.state, AgentEvent.SEEN)
        agent.last_seen_at = now


def declare(session: Session, agent_id: str, limits: DeclaredLimits, now: datetime) -> None:
    """Note what the agent allows training to take, as it says with each claim."""
    agent = session.get_one(Agent, agent_id)
    if agent.limits != (declared := limits.model_dump()):
        agent.limits = declared
        refusals.limits_changed(session, agent_id, now)


def silence(session: Session, before: datetime) -> None:
    """Mark the active agents silent that were not seen since `before`."""
    for agent in session.scalars(select(Agent).where(Agent.state == AgentState.ACTIVE, Agent.last_seen_at < before)):
        agent.state = AGENT.after(agent.state, AgentEvent.MISSED)
        record(session, "warning", "agent_silent", f"agent {agent.name} has not been seen since {agent.last_seen_at}", agent_id=agent.id)
        assignments.leave_to_others(session, agent.id)


def by_name(session: Session, name_or_id: str) -> Agent:
    agent = session.scalar(select(Agent).where((Agent.name == name_or_id) | (Agent.id == name_or_id)))
    if agent is None:
        raise NotFound(f"there is no agent {name_or_id!r}")
    return agent


def revoke(session: Session, name_or_id: str, now: datetime) -> Agent:
    """Shut an agent out at once; what it holds goes back."""
    agent = by_name(session, name_or_id)
    agent.state = AGENT.after(agent.state, AgentEvent.REVOKE)
    assignments.release_all(session, agent.id, now)
    record(session, "warning", "agent_revoked", f"agent {agent.name} was revoked", agent_id=agent.id)
    return agent


def rotate_key(session: Session, agent_id: str) -> str:
    """A new key for an agent; the old one is void at once."""
    key = keys.new_key(keys.AGENT)
    session.get_one(Agent, agent_id).key_hash = keys.key_hash(key)
    return key
