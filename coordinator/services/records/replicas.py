"""The coordinator processes that use this database: one today. Each says that it lives; what a dead one held is known by that."""

from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Replica
from fedcybgd.coordinator.services.records import job_leases, keys

BEAT_EVERY_S = 5.0
ALIVE = timedelta(seconds=20)
"""Who was seen within this time counts as alive."""


def enter(session: Session, home: str, now: datetime) -> str:
    """The id of this process, which holds `home`. Who held it before is gone: what it had under way waits again."""
    former = list(session.scalars(select(Replica.id).where(Replica.home == home)))
    job_leases.give_back(session, former)
    session.execute(delete(Replica).where(Replica.id.in_(former)))
    replica = Replica(id=keys.new_id("rep"), home=home, started_at=now, seen_at=now)
    session.add(replica)
    return replica.id


def beat(session: Session, replica: str, now: datetime) -> None:
    session.execute(update(Replica).where(Replica.id == replica).values(seen_at=now))


def leave(session: Session, replica: str) -> None:
    """The process stops: what it has under way is anybody's."""
    job_leases.give_back(session, [replica])
    session.execute(delete(Replica).where(Replica.id == replica))


def others_seen_at(session: Session, replica: str | None) -> datetime | None:
    """When another coordinator lived last, as far as is known."""
    return session.scalar(select(func.max(Replica.seen_at)).where(Replica.id != (replica or "")))
