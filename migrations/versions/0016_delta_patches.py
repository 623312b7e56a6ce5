"""delta_patches: runs that there are go on handing deltas from agent to agent; new ones do so where their run file says it."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

RUN = sa.table("run", sa.column("id"), sa.column("spec", sa.JSON()))


def upgrade() -> None:
    _each(lambda compression: {"delta_patches": True} | compression)


def downgrade() -> None:
    _each(lambda compression: {name: value for name, value in compression.items() if name != "delta_patches"})


def _each(changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    connection = op.get_bind()
    for run_id, spec in connection.execute(sa.select(RUN.c.id, RUN.c.spec)).all():
        compression = changed(spec.get("compression") or {})
        rest = {name: value for name, value in spec.items() if name != "compression"}
        new = {**spec, "compression": compression} if compression else rest
        connection.execute(RUN.update().where(RUN.c.id == run_id).values(spec=new))
