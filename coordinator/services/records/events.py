"""Writes down what happened, for people."""

from typing import Literal

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Event


def record(
    session: Session,
    level: Literal["info", "warning", "error"],
    code: str,
    message: str,
    run_id: str | None = None,
    agent_id: str | None = None,
) -> None:
    session.add(Event(at=utcnow(), level=level, code=code, message=message, run_id=run_id, agent_id=agent_id))
