"""Writes down what happened, for people."""

from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.util import identity_key

from fedcybgd.coordinator.db import counts, lines
from fedcybgd.coordinator.db.lines import EventMessage
from fedcybgd.coordinator.db.models import Agent, Event, Run
from fedcybgd.shared.contract.plain import one_line

Level = Literal["info", "warning", "error"]
OFTEN, WITHIN = 50, timedelta(hours=1)
"""How often an agent is told of with one code, where it alone decides how often there is something to tell"""


def record(
    session: Session,
    now: datetime,
    level: Level,
    code: str,
    message: str,
    run_id: str | None = None,
    agent_id: str | None = None,
    round: int | None = None,
    block: str | None = None,
) -> None:
    """For people, in the database; and as a line of the log once it is true, where `round` and `block` are fields too."""
    message = one_line(message)  # what an agent says in it is not to be taken for the next event
    session.add(Event(at=now, level=level, code=code, message=message, run_id=run_id, agent_id=agent_id))
    counts.count(session, "fedcoord_events_total", 1, level)
    about: dict[str, object] = {
        "run_id": run_id, "run": _name(session, Run, run_id), "round": round, "block": block,
        "agent_id": agent_id, "agent": _name(session, Agent, agent_id),
    }  # fmt: skip
    lines.say(session, EventMessage(level, code, message, {field: value for field, value in about.items() if value is not None}))


def record_at_most(
    session: Session, now: datetime, level: Level, code: str, message: str, agent_id: str, run_id: str | None = None,
    round: int | None = None, block: str | None = None,
) -> None:  # fmt: skip
    """The same of what an agent can bring about as often as it likes: after `OFTEN` times within an hour no more, so that it buries nothing else."""
    mine = (Event.agent_id == agent_id) & (Event.code == code)
    since = session.scalar(select(Event.at).where(mine).order_by(Event.id.desc()).offset(OFTEN - 1).limit(1))
    if since is None or not timedelta() <= now - since < WITHIN:  # what is later than now is of a clock that was ahead
        record(session, now, level, code, message, run_id, agent_id, round, block)


def record_by(session: Session, now: datetime, level: Level, code: str, message: str, run_id: str, agent_id: str | None) -> None:
    """Of a run, by the doing of an agent, which may do it as often as it likes; or by nobody's."""
    if agent_id is None:
        record(session, now, level, code, message, run_id)
    else:
        record_at_most(session, now, level, code, message, agent_id, run_id)


def was_recorded(session: Session, code: str, begins: str, since: datetime) -> bool:
    """Whether an event of this code whose message begins so was written down since then."""
    same = (Event.code == code) & (func.substr(Event.message, 1, len(begins)) == begins) & (Event.at >= since)
    return session.scalar(select(Event.id).where(same).limit(1)) is not None


def _name(session: Session, kind: type[Run] | type[Agent], key: str | None) -> str | None:
    """Of what the transaction has at hand: a line of the log asks no database."""
    row = None if key is None else session.identity_map.get(identity_key(kind, key))
    return None if row is None else row.__dict__.get("name")  # what is expired stays so
