"""Alembic's entry: runs on the connection that `coordinator.db.migrate` hands over."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from fedcybgd.coordinator.db import models  # noqa: F401 - fills the metadata
from fedcybgd.coordinator.db.base import Base, UtcDateTime

connection = context.config.attributes["connection"]


def render_item(kind: str, item: Any, _autogen: AutogenContext) -> str | Literal[False]:
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
    render_item=render_item,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
