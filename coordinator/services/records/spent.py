"""Signatures that have changed something: what one process has heard, another one does not do again."""

from datetime import datetime, timedelta
from enum import Enum

from sqlalchemy import bindparam, delete, exists, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import SpentSignature
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


TABLE = SpentSignature.metadata.tables[SpentSignature.__tablename__]
GIVEN = {name: bindparam(f"its_{name}", type_=TABLE.c[name].type) for name in ("key_id", "nonce", "created", "at")}
LATER = exists().where(SpentSignature.key_id == GIVEN["key_id"], SpentSignature.created > GIVEN["created"])
UNLESS_OVERTAKEN = {
    name: dialect.insert(TABLE)
    .from_select(list(GIVEN), select(*GIVEN.values()).where(~LATER))
    .on_conflict_do_nothing()
    .returning(TABLE.c.nonce)
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}
"""By the name of a dialect; made once: that costs more than asking."""


def spend(session: Session, said: SignatureParameters, now: datetime) -> Heard:
    """A signature that is fresh is spent by this transaction, and by no other."""
    given = {"its_key_id": said.key_id, "its_nonce": said.nonce, "its_created": said.created, "its_at": now}
    if session.scalar(UNLESS_OVERTAKEN[session.get_bind().dialect.name], given) is not None:
        return Heard.FRESH
    known = session.get(SpentSignature, (said.key_id, said.nonce))
    return Heard.OVERTAKEN if known is None else Heard.REPEATED


def forget(session: Session, now: datetime) -> None:
    """Those that are good for nothing any more; and those of a time that is yet to come: the clock was wrong, and is not any more."""
    session.execute(delete(SpentSignature).where(or_(SpentSignature.at < now - KEPT, SpentSignature.at > now + AHEAD)))
