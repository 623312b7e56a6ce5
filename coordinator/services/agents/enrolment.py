"""Enrolment with tokens."""

from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, EnrolmentToken
from fedcybgd.coordinator.domain.agent import AGENT
from fedcybgd.coordinator.errors import Conflict, NotFound, Unauthorized
from fedcybgd.coordinator.services.agents import identity
from fedcybgd.coordinator.services.records import keys
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.agents import DeclaredLimits, EnrolAnswer, EnrolRequest


class TokenUnknown(Unauthorized):
    code = "token_unknown"


class TokenExpired(Unauthorized):
    code = "token_expired"


class TokenUsed(Conflict):
    code = "token_used"


class TokenWithdrawn(Unauthorized):
    code = "token_withdrawn"


class TokenOfAnother(Conflict):
    code = "token_of_another"


class NameTaken(Conflict):
    code = "agent_name_taken"


def create_token(session: Session, now: datetime, holds: timedelta, uses: int = 1) -> tuple[EnrolmentToken, str]:
    """A token with which so many agents may enrol before it expires."""
    token = keys.new_key(keys.TOKEN)
    row = EnrolmentToken(
        id=keys.new_id("tok"), token_hash=keys.key_hash(token), created_at=now, expires_at=now + holds, uses=uses, used=0
    )  # fmt: skip
    session.add(row)
    return row, token


def reissue(session: Session, name_or_id: str, now: datetime, holds: timedelta) -> tuple[EnrolmentToken, str]:
    """Take an agent's key away at once, and make a token with which its owner, and nobody else, gets another for it; an earlier one is withdrawn."""
    agent = queries.agent_by_name(session, name_or_id)
    identity.admit(agent)
    identity.lose_key(session, agent)
    # Whoever has one of before has it from where the key was lost.
    earlier = update(EnrolmentToken).where(EnrolmentToken.agent_id == agent.id, EnrolmentToken.withdrawn_at.is_(None))
    session.execute(earlier.where(EnrolmentToken.used < EnrolmentToken.uses).values(withdrawn_at=now))
    row, token = create_token(session, now, holds)
    row.agent_id = agent.id
    record(session, now, "warning", "agent_key_void", f"agent {agent.name} has no key until its owner enrols it again", agent_id=agent.id)
    return row, token


def withdraw(session: Session, token_id: str, now: datetime) -> EnrolmentToken:
    """Nobody enrols with this token any more."""
    token = session.scalar(select(EnrolmentToken).where(EnrolmentToken.id == token_id).with_for_update())
    if token is None:
        raise NotFound(f"there is no token {token_id}; `fedcoord agents tokens` lists them")
    if token.withdrawn_at is None:
        token.withdrawn_at = now
    return token


def enrol(session: Session, request: EnrolRequest, now: datetime, holds: timedelta | None = None) -> EnrolAnswer:
    """Make an agent of whoever holds a good token, or give one that is there another key. The token is spent only if all goes well.

    `holds`: for how long the key is good; None: for good.
    """
    token = _locked(session, request)
    _check(token, now)
    assert token is not None
    token.used, token.used_at = token.used + 1, now
    agent = _new(session, request, now) if token.agent_id is None else _again(session, token.agent_id, request, now)
    key = identity.give_key(session, agent, request.public_key, now, holds)
    return EnrolAnswer(agent_id=agent.id, name=agent.name, key=key, public_key=request.public_key)


def said_before(session: Session, request: EnrolRequest) -> EnrolAnswer | None:
    """What this very request was answered that has made an agent, or given it its key: that answer may have been lost. Nothing is changed."""
    token = _locked(session, request)  # the first one may be under way
    if token is None or not token.used or request.public_key is None:
        return None
    named = Agent.name == request.name if request.agent_id is None else Agent.id == request.agent_id
    agent = session.scalar(select(Agent).where(Agent.public_key == request.public_key, named))
    if agent is None or token.agent_id not in (None, agent.id):
        return None
    identity.admit(agent)
    return EnrolAnswer(agent_id=agent.id, name=agent.name, key=None, public_key=request.public_key)


def _locked(session: Session, request: EnrolRequest) -> EnrolmentToken | None:
    return session.scalar(select(EnrolmentToken).where(EnrolmentToken.token_hash == keys.key_hash(request.token)).with_for_update())


def _check(token: EnrolmentToken | None, now: datetime) -> None:
    if token is None:
        raise TokenUnknown("this enrolment token is not known; copy it whole, or ask the operator for a new one")
    if token.withdrawn_at is not None:
        raise TokenWithdrawn("this enrolment token was withdrawn; ask the operator for a new one")
    if token.used >= token.uses:
        raise TokenUsed("this enrolment token was used already; ask the operator for a new one")
    if token.expires_at <= now:
        raise TokenExpired(f"this enrolment token expired at {token.expires_at:%Y-%m-%d %H:%M} UTC; ask the operator for a new one")


def _new(session: Session, request: EnrolRequest, now: datetime) -> Agent:
    taken = NameTaken(f"there is an agent named {request.name!r} already; enrol under another name")
    if session.scalar(select(Agent.id).where((Agent.name == request.name) | (Agent.id == request.name))) is not None:
        raise taken  # by its id, too: operators call agents by either
    agent = Agent(
        id=keys.new_id("agt"), name=request.name, key_hash=keys.nobodys(), state=AGENT.start,
        device=request.device, limits=DeclaredLimits(), version=request.version, enrolled_at=now,
    )  # fmt: skip
    session.add(agent)
    try:
        session.flush()
    except IntegrityError as error:  # somebody took the name a moment ago
        raise taken from error
    record(session, now, "info", "agent_enrolled", f"agent {agent.name} enrolled", agent_id=agent.id)
    return agent


def _again(session: Session, agent_id: str, request: EnrolRequest, now: datetime) -> Agent:
    agent = session.get_one(Agent, agent_id)
    if request.agent_id != agent.id if request.agent_id is not None else request.name != agent.name:
        raise TokenOfAnother(
            f"this token gives agent {agent.name!r} another key, and you are {request.name!r}: enrol with --name {agent.name}"
        )
    identity.admit(agent)
    agent.device, agent.version = request.device, request.version
    record(session, now, "info", "agent_key_new", f"agent {agent.name} has another key", agent_id=agent.id)
    return agent
