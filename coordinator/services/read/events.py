"""Events as people look through them: of everything or of one run, by level, code or agent, in pages."""

from dataclasses import dataclass
from datetime import datetime
from functools import cache

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Event, Run
from fedcybgd.coordinator.db.paging import Listed, Order, Page
from fedcybgd.shared.contract.run_views import EventEntry

EVENTS = Order(Event.id, newest_first=True)
EVENT_ROWS = (
    select(Event.id, Event.at, Event.level, Event.code, Event.message, Event.run_id, Run.name.label("run"), Agent.name.label("agent"))
    .join(Run, Run.id == Event.run_id, isouter=True)
    .join(Agent, Agent.id == Event.agent_id, isouter=True)
)


@dataclass(frozen=True)
class Wanted:
    """Which events; None: whatever they are in that."""

    run: str | None = None
    agent: str | None = None
    level: str | None = None
    code: str | None = None


def listed(session: Session, wanted: Wanted, page: Page) -> Listed[EventEntry]:
    """The newest first. Raises `NotFound` for a run or an agent that is not there."""
    given: dict[str, str] = {}
    if wanted.run is not None:
        given["run_id"] = queries.run_id(session, wanted.run)
    if wanted.agent is not None:
        given["agent_id"] = queries.agent_by_name(session, wanted.agent).id
    if wanted.level is not None:
        given["level"] = wanted.level
    if wanted.code is not None:
        given["code"] = wanted.code
    return EVENTS.page(session, _rows_by(*given), page, **given).map(lambda row: EventEntry.model_validate(row, from_attributes=True))


@cache
def _rows_by(*columns: str) -> Select[int, datetime, str, str, str, str | None, str, str]:
    """Those that have what is given in these columns. Made once: that costs more than asking."""
    return EVENT_ROWS.where(*(getattr(Event, column) == bindparam(column) for column in columns))


def entry(session: Session, event: int) -> EventEntry | None:
    """One of them; None: it was deleted with what it was about."""
    row = session.execute(EVENT_ROWS.where(Event.id == event)).one_or_none()
    return None if row is None else EventEntry.model_validate(row, from_attributes=True)


def after(session: Session, event: int, limit: int) -> list[EventEntry]:
    """Those that were written down after one, the oldest first."""
    rows = session.execute(EVENT_ROWS.where(Event.id > event).order_by(Event.id).limit(limit))
    return [EventEntry.model_validate(row, from_attributes=True) for row in rows]


def newest(session: Session) -> int:
    """The id of the last one; 0: nothing has happened yet."""
    return session.scalar(select(func.max(Event.id))) or 0
