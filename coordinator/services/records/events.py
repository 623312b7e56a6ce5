"""Writes down what happened, for people."""

from datetime import datetime
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.util import identity_key

from fedcybgd.coordinator.db import counts, lines
from fedcybgd.coordinator.db.lines import EventMessage
from fedcybgd.coordinator.db.models import Agent, Event, Run


def record(
    session: Session,
    now: datetime,
    level: Literal["info", "warning", "error"],
    code: str,
    message: str,
    run_id: str | None = None,
    agent_id: str | None = None,
    round: int | None = None,
    block: str | None = None,
) -> None:
    """For people, in the database; and as a line of the log once it is true, where `round` and `block` are fields too."""
    session.add(Event(at=now, level=level, code=code, message=message, run_id=run_id, agent_id=agent_id))
    counts.count(session, "fedcoord_events_total", 1, level)
    about: dict[str, object] = {
        "run_id": run_id, "run": _name(session, Run, run_id), "round": round, "block": block,
        "agent_id": agent_id, "agent": _name(session, Agent, agent_id),
    }  # fmt: skip
    lines.say(session, EventMessage(level, code, message, {field: value for field, value in about.items() if value is not None}))


def was_recorded(session: Session, code: str, begins: str, since: datetime) -> bool:
    """Whether an event of this code whose message begins so was written down since then."""
    same = (Event.code == code) & (func.substr(Event.message, 1, len(begins)) == begins) & (Event.at >= since)
    return session.scalar(select(Event.id).where(same).limit(1)) is not None


def _name(session: Session, kind: type[Run] | type[Agent], key: str | None) -> str | None:
    """Of what the transaction has at hand: a line of the log asks no database."""
    row = None if key is None else session.identity_map.get(identity_key(kind, key))
    return None if row is None else row.__dict__.get("name")  # what is expired stays so
