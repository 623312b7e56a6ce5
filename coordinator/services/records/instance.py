"""The coordinator's own identity: an agent tells by it whether the one that answers is the one that it is enrolled at."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Instance
from fedcybgd.coordinator.services.records import keys


def identity(session: Session, now: datetime) -> str:
    """The id of this database, made when it is asked for the first time."""
    known = session.scalar(select(Instance.id).order_by(Instance.created_at, Instance.id).limit(1))
    if known is None:
        known = keys.new_id("crd")
        session.add(Instance(id=known, created_at=now))
    return known
