"""The operator's key."""

from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import OperatorKey
from fedcybgd.coordinator.errors import Unauthorized
from fedcybgd.coordinator.services.records import keys


def ensure_key(session: Session, now: datetime) -> str | None:
    """The operator's new key if there was none yet; it cannot be read again later."""
    if session.scalar(select(OperatorKey.id).limit(1)) is not None:
        return None
    return rotate_key(session, now)


def rotate_key(session: Session, now: datetime) -> str:
    """Replace the operator's key; the old one is void at once."""
    session.execute(delete(OperatorKey))
    key = keys.new_key(keys.OPERATOR)
    session.add(OperatorKey(key_hash=keys.key_hash(key), created_at=now))
    return key


def authenticate(session: Session, key: str) -> None:
    """Raise `Unauthorized` unless `key` is the operator's."""
    if session.scalar(select(OperatorKey.id).where(OperatorKey.key_hash == keys.key_hash(key))) is None:
        raise Unauthorized("this needs the operator's key (Authorization: Bearer fco_…); `fedcoord operator rotate` makes a new one")
