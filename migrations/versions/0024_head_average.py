"""head_average: runs that there are go on putting their heads together as they did; new ones of a classifier do not damp them."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

RUN = sa.table("run", sa.column("id"), sa.column("spec", sa.JSON()))


def upgrade() -> None:
    _each(lambda schedule: {"head_average": "damped"} | schedule)


def downgrade() -> None:
    _each(lambda schedule: {name: value for name, value in schedule.items() if name != "head_average"})


def _each(changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    connection = op.get_bind()
    for run_id, spec in connection.execute(sa.select(RUN.c.id, RUN.c.spec)).all():
        schedule = changed(spec.get("schedule") or {})
        rest = {name: value for name, value in spec.items() if name != "schedule"}
        new = {**spec, "schedule": schedule} if schedule else rest
        connection.execute(RUN.update().where(RUN.c.id == run_id).values(spec=new))
