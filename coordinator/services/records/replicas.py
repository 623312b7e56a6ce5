"""The coordinator processes that use this database. Each says that it lives; what a dead one held is known by that."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib.metadata import version

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Replica
from fedcybgd.coordinator.services.records import job_leases, keys

BEAT_EVERY_S = 3.0
ALIVE = timedelta(seconds=10)
"""Who was seen within this time counts as alive."""
FORGOTTEN = timedelta(days=1)


def enter(session: Session, home: str, now: datetime) -> str:
    """The id of this process, which holds `home`. Who held it before is gone: what it had under way waits again."""
    former = list(session.scalars(select(Replica.id).where(Replica.home == home)))
    job_leases.give_back(session, former)
    session.execute(delete(Replica).where(Replica.id.in_(former)))
    replica = Replica(
        id=keys.new_id("rep"), home=home, started_at=now, seen_at=now, waiting_claims=0, version=version("fedcybgd"),
    )  # fmt: skip
    session.add(replica)
    return replica.id


def beat(session: Session, replica: str, home: str, waiting_claims: int, now: datetime) -> None:
    """It lives. One that was away for so long that it was forgotten is there again."""
    row = session.get(Replica, replica)
    if row is None:
        row = Replica(id=replica, home=home, started_at=now, version=version("fedcybgd"))
        session.add(row)
    row.seen_at, row.waiting_claims = now, waiting_claims
    session.execute(delete(Replica).where(Replica.seen_at < now - FORGOTTEN, Replica.id != replica))


def leave(session: Session, replica: str) -> None:
    """The process stops: what it has under way is anybody's."""
    job_leases.give_back(session, [replica])
    session.execute(delete(Replica).where(Replica.id == replica))


def others_seen_at(session: Session, home: str) -> datetime | None:
    """When a coordinator with another home lived last, as far as is known."""
    return session.scalar(select(func.max(Replica.seen_at)).where(Replica.home != home))


def is_another_alive(session: Session, home: str, now: datetime) -> bool:
    seen = others_seen_at(session, home)
    return seen is not None and now - seen <= ALIVE


def alive(session: Session, now: datetime) -> Sequence[Replica]:
    """Those that live, the longest first."""
    return session.scalars(select(Replica).where(Replica.seen_at > now - ALIVE).order_by(Replica.started_at, Replica.id)).all()
