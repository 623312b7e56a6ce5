"""Writes down what happened, for people."""

from datetime import datetime
from typing import Literal

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import counts
from fedcybgd.coordinator.db.models import Event


def record(
    session: Session,
    now: datetime,
    level: Literal["info", "warning", "error"],
    code: str,
    message: str,
    run_id: str | None = None,
    agent_id: str | None = None,
) -> None:
    session.add(Event(at=now, level=level, code=code, message=message, run_id=run_id, agent_id=agent_id))
    counts.count(session, "fedcoord_events_total", 1, level)
