"""Held-out files: which ones were uploaded, by digest."""

from datetime import datetime

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import HeldOut


def keep(session: Session, digest: str, name: str, size: int, now: datetime) -> None:
    """Note an uploaded file whose bytes are stored; the first name of the same bytes stays, whatever is repeated or at the same time."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    session.execute(dialect.insert(HeldOut).values(digest=digest, name=name, size=size, created_at=now).on_conflict_do_nothing())
