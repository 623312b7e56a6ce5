"""The processes that do work of this database: coordinators, and engines elsewhere. Each says that it lives; what a dead one held is known by that."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Replica
from fedcybgd.coordinator.domain.jobs.kinds import Lane
from fedcybgd.coordinator.services.records import job_leases, keys

BEAT_EVERY_S = 3.0
ALIVE = timedelta(seconds=10)
"""Who was seen within this time counts as alive."""
FORGOTTEN = timedelta(days=1)


def enter(session: Session, home: str, now: datetime, lanes: Iterable[str] = Lane) -> str:
    """The id of this coordinator, which holds `home`. Who held it before is gone: what it had under way waits again."""
    former = list(session.scalars(select(Replica.id).where(Replica.home == home)))
    job_leases.give_back(session, former)
    session.execute(delete(Replica).where(Replica.id.in_(former)))
    session.add(row := _row(keys.new_id("rep"), home, now, lanes))
    return row.id


def enter_engine(session: Session, now: datetime, lanes: Iterable[str]) -> str:
    """The id of this engine elsewhere, which holds no home: each start is another."""
    name = keys.new_id("eng")
    session.add(_row(name, name, now, lanes, serves=False))
    return name


def _row(replica: str, home: str, now: datetime, lanes: Iterable[str], serves: bool = True) -> Replica:
    return Replica(
        id=replica, home=home, started_at=now, seen_at=now, waiting_claims=0, version=version("fedcybgd"), serves=serves,
        lanes=[str(lane) for lane in lanes],
    )  # fmt: skip


def beat(
    session: Session, replica: str, home: str, waiting_claims: int, now: datetime, lanes: Iterable[str] = Lane, serves: bool = True
) -> None:
    """It lives. One that was away for so long that it was forgotten is there again."""
    row = session.get(Replica, replica)
    if row is None:
        session.add(row := _row(replica, home, now, lanes, serves))
    row.seen_at, row.waiting_claims = now, waiting_claims
    session.execute(delete(Replica).where(Replica.seen_at < now - FORGOTTEN, Replica.id != replica))


def leave(session: Session, replica: str) -> None:
    """The process stops: what it has under way is anybody's."""
    job_leases.give_back(session, [replica])
    session.execute(delete(Replica).where(Replica.id == replica))


def others_seen_at(session: Session, home: str, now: datetime) -> datetime | None:
    """When a coordinator with another home lived last, as far as is known. Engines elsewhere look after no leases, and do not count."""
    others = (Replica.home != home) & Replica.serves & (Replica.seen_at <= now + ALIVE)
    return session.scalar(select(func.max(Replica.seen_at)).where(others))


def is_another_alive(session: Session, home: str, now: datetime) -> bool:
    seen = others_seen_at(session, home, now)
    return seen is not None and now - seen <= ALIVE


def _lives(now: datetime) -> ColumnElement[bool]:
    """Who was seen later than now was so by a clock that was ahead."""
    return Replica.seen_at.between(now - ALIVE, now + ALIVE)


def alive(session: Session, now: datetime, serving: bool = True) -> Sequence[Replica]:
    """The coordinators that live, the longest first; or, not `serving`, the engines elsewhere."""
    living = select(Replica).where(_lives(now), Replica.serves == serving)
    return session.scalars(living.order_by(Replica.started_at, Replica.id)).all()


def lanes_done(session: Session, now: datetime) -> set[str]:
    """Lanes of which somebody who lives does jobs."""
    living = session.scalars(select(Replica.lanes).where(_lives(now)))
    return {str(lane) for lanes in living for lane in (Lane if lanes is None else lanes)}
