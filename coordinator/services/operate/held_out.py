"""Held-out files: which ones were uploaded, by digest."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import HeldOut
from fedcybgd.coordinator.db.upsert import upsert


def keep(session: Session, digest: str, name: str, size: int, now: datetime) -> None:
    """Note an uploaded file whose bytes are stored; the first name of the same bytes stays, whatever is repeated or at the same time."""
    row = upsert(session, HeldOut).values(digest=digest, name=name, size=size, created_at=now)
    session.execute(row.on_conflict_do_nothing())
