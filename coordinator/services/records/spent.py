"""Signatures that have changed something: what one process has heard, another one does not do again."""

from datetime import datetime, timedelta
from enum import Enum

from sqlalchemy import BigInteger, String, delete, exists, literal, or_, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import SpentSignature
from fedcybgd.coordinator.db.upsert import upsert
from fedcybgd.shared.contract.signatures import WINDOW_S, SignatureParameters

KEPT = timedelta(minutes=10)
"""Many times as long as a signature is good: clocks of processes may differ."""

AHEAD = timedelta(seconds=WINDOW_S)
"""By no more may the clocks of processes differ."""


class Heard(Enum):
    """What a signature is to those that were heard before."""

    FRESH = "fresh"
    REPEATED = "repeated"
    OVERTAKEN = "overtaken"
    """a later one of this key has changed something: it may be an old one, which came to nothing then"""


def spend(session: Session, said: SignatureParameters, now: datetime) -> Heard:
    """A signature that is fresh is spent by this transaction, and by no other."""
    later = exists().where(SpentSignature.key_id == said.key_id, SpentSignature.created > said.created)
    values = select(
        literal(said.key_id), literal(said.nonce, String), literal(said.created, BigInteger), literal(now, SpentSignature.at.type)
    )
    columns = ["key_id", "nonce", "created", "at"]
    row = upsert(session, SpentSignature).from_select(columns, values.where(~later)).on_conflict_do_nothing()
    if session.scalar(row.returning(SpentSignature.nonce)) is not None:
        return Heard.FRESH
    known = session.get(SpentSignature, (said.key_id, said.nonce))
    return Heard.OVERTAKEN if known is None else Heard.REPEATED


def forget(session: Session, now: datetime) -> None:
    """Those that are good for nothing any more; and those of a time that is yet to come: the clock was wrong, and is not any more."""
    session.execute(delete(SpentSignature).where(or_(SpentSignature.at < now - KEPT, SpentSignature.at > now + AHEAD)))
