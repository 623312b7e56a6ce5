"""Browsers that are logged in at /admin: each is a row, so that its end is its end."""

import hmac
import secrets
from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Login, Operator
from fedcybgd.coordinator.domain.caller import Caller
from fedcybgd.coordinator.errors import Unauthorized
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.services.records import keys
from fedcybgd.shared.contract.digests import digest_of

HOLDS = timedelta(hours=12)
MOST = 20
"""Browsers of one operator; one more, and the oldest is logged out"""

KNOWN = (
    select(Operator)
    .join(Login, Login.operator_id == Operator.id)
    .where(Login.token_hash == bindparam("hash"), Login.expires_at > bindparam("now"))
)
"""Made once: that costs more than asking."""


def begin(session: Session, key: str, address: str, now: datetime) -> tuple[Caller, str, datetime]:
    """Log a browser in with an operator's key: who that is, its cookie, which is new at every login, and until when. Raises `Unauthorized`."""
    operator = operators.known(session, key, now)
    token = secrets.token_urlsafe(32)
    session.execute(delete(Login).where(Login.expires_at <= now))
    mine = select(Login.token_hash).where(Login.operator_id == operator.id).order_by(Login.began_at.desc())
    session.execute(delete(Login).where(Login.token_hash.in_(session.scalars(mine.offset(MOST - 1)).all())))
    ends = now + HOLDS if operator.expires_at is None else min(now + HOLDS, operator.expires_at)
    session.add(Login(token_hash=keys.key_hash(token), operator_id=operator.id, began_at=now, expires_at=ends))
    operator.last_used_at = now
    return operators.caller_of(operator, address), token, ends


def known(session: Session, token: str, address: str, now: datetime) -> Caller:
    """Who is logged in with this cookie. Raises `Unauthorized`."""
    operator = session.scalar(KNOWN, {"hash": keys.key_hash(token), "now": now}) if token else None
    if operator is None:
        raise Unauthorized("this browser is not logged in: open /admin and give an operator's key")
    operators.check(operator, now)
    return operators.caller_of(operator, address)


def end(session: Session, token: str) -> None:
    """Log a browser out: its cookie opens nothing any more, wherever a copy of it is."""
    session.execute(delete(Login).where(Login.token_hash == keys.key_hash(token)))


def form_token(secret: str) -> str:
    """What a form sends along, so that no other site can send it: of the cookie, but not the cookie."""
    return digest_of(f"form:{secret}".encode())


def is_form_token(given: str, secret: str) -> bool:
    return bool(secret) and hmac.compare_digest(given.encode(), form_token(secret).encode())
