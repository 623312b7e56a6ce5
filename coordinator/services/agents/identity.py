"""Who an agent is, by its key."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import bindparam, exists, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Agent, Assignment
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.errors import Conflict, Forbidden, Invalid, Unauthorized
from fedcybgd.coordinator.services.records import keys
from fedcybgd.shared.contract.agents import DeclaredLimits


class AgentRevoked(Forbidden):
    code = "agent_revoked"


class AgentKeyExpired(Unauthorized):
    code = "agent_key_expired"


class PublicKeyNeeded(Invalid):
    code = "public_key_needed"


class PublicKeyTaken(Conflict):
    code = "public_key_taken"


@dataclass(frozen=True)
class Identity:
    """Whose a key is, and what a claim of it needs to know."""

    id: str
    name: str
    state: str
    limits: DeclaredLimits
    """as the agent declared them last"""
    last_seen_at: datetime | None
    daemon: str | None
    """the word of the daemon that asks with the key"""
    holds: bool
    """it holds a lease"""
    public_key: str | None
    key_expires_at: datetime | None


BY_KEY = select(
    Agent.id, Agent.name, Agent.state, Agent.limits, Agent.last_seen_at, Agent.daemon,
    exists().where(Assignment.state == AssignmentState.LEASED, Assignment.agent_id == Agent.id), Agent.public_key, Agent.key_expires_at,
).where(Agent.key_hash == bindparam("hashed"))  # fmt: skip
"""Made once: that costs more than asking."""


def look_up(session: Session, key_hash: str) -> Identity:
    row = session.execute(BY_KEY, {"hashed": key_hash}).one_or_none()
    if row is None:
        raise Unauthorized("this needs an agent's key, and this one is not known (any more); enrol with `fedagent enroll`")
    found = Identity(*row)
    admit(found)
    return found


def admit(agent: Identity | Agent) -> None:
    """Raises `AgentRevoked` for one that was shut out."""
    if agent.state == AgentState.REVOKED:
        raise AgentRevoked(f"agent {agent.name} was revoked by the operator")


def check_key(name: str, expires_at: datetime | None, now: datetime) -> None:
    """Raises `AgentKeyExpired` for a key whose time is over."""
    if expires_at is not None and expires_at <= now:
        raise AgentKeyExpired(
            f"the key of agent {name} expired at {expires_at:%Y-%m-%d %H:%M} UTC, while it was away: its operator makes a token "
            f"(`fedcoord agents rotate {name}`), and `fedagent rotate-key --token-file FILE` makes another key with that"
        )


def rotate_key(
    session: Session, agent_id: str, key_hash: str, public_key: str | None, now: datetime, holds: timedelta | None = None
) -> str | None:
    """Another key for an agent that has shown the one of this hash, as `give_key` gives it. One that signs goes on signing: it must name its next public key.

    Raises `Unauthorized` where the key has become void since it was looked at.
    """
    agent = session.scalar(select(Agent).where(Agent.id == agent_id, Agent.key_hash == key_hash).with_for_update(key_share=True))
    if agent is None:
        raise Unauthorized("the key of this agent was taken away, or changed, a moment ago")
    admit(agent)
    if public_key is None and agent.public_key is not None:
        raise PublicKeyNeeded("this agent signs its requests: name the public key that it will sign with")
    return give_key(session, agent, public_key, now, holds)


def give_key(session: Session, agent: Agent, public_key: str | None, now: datetime, holds: timedelta | None) -> str | None:
    """Know an agent by a public key from now on, else by a secret, which is returned. What was before is void at once.

    `holds`: for how long it is good; None: for good.
    """
    secret = None if public_key is not None else keys.new_key(keys.AGENT)
    agent.public_key = public_key
    agent.key_hash = keys.key_hash(secret or public_key or "")
    agent.key_expires_at = None if holds is None else now + holds
    try:
        session.flush()
    except IntegrityError as error:
        raise PublicKeyTaken("another agent signs with this key: make one of your own (fedagent enroll does)") from error
    _is_another(session, agent)
    return secret


def lose_key(session: Session, agent: Agent) -> None:
    """Nobody is this agent until it gets another key."""
    agent.public_key, agent.key_hash = None, keys.nobodys()
    _is_another(session, agent)


def _is_another(session: Session, agent: Agent) -> None:
    signals.forget(session, agent.id)
    signals.let_go(session, agent.id)  # a claim that waits was made with the old one
