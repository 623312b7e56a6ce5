"""Rows that may be there already: an `INSERT` that can say what is done then, in the words of either database."""

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Base


def upsert(session: Session, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
    """To be ended by `on_conflict_do_nothing` or `on_conflict_do_update`."""
    return sqlite.insert(table) if session.get_bind().dialect.name == "sqlite" else postgresql.insert(table)
