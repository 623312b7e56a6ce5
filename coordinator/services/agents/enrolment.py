"""Enrolment with one-time tokens."""

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent, EnrolmentToken
from fedcybgd.coordinator.domain.agent import AGENT
from fedcybgd.coordinator.errors import Conflict, Unauthorized
from fedcybgd.coordinator.services.records import keys
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.agents import DeclaredLimits, EnrolAnswer, EnrolRequest


class TokenUnknown(Unauthorized):
    code = "token_unknown"


class TokenExpired(Unauthorized):
    code = "token_expired"


class TokenUsed(Conflict):
    code = "token_used"


class NameTaken(Conflict):
    code = "agent_name_taken"


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
        id=keys.new_id("agt"), name=request.name, key_hash=keys.key_hash(key), state=AGENT.start,
        device=request.device, limits=DeclaredLimits(), version=request.version, enrolled_at=now,
    )  # fmt: skip
    session.add(agent)
    try:
        session.flush()
    except IntegrityError as error:  # somebody took the name a moment ago
        raise taken from error
    record(session, now, "info", "agent_enrolled", f"agent {agent.name} enrolled", agent_id=agent.id)
    return EnrolAnswer(agent_id=agent.id, name=agent.name, key=key)
