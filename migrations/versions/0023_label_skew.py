"""label_skew: runs that there are go on with the loss that they have; new ones of a classifier allow for unlike labels."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

RUN = sa.table("run", sa.column("id"), sa.column("spec", sa.JSON()))


def upgrade() -> None:
    _each(lambda train: {"label_skew": "none"} | train)


def downgrade() -> None:
    _each(lambda train: {name: value for name, value in train.items() if name != "label_skew"})


def _each(changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    connection = op.get_bind()
    for run_id, spec in connection.execute(sa.select(RUN.c.id, RUN.c.spec)).all():
        train = changed(spec.get("train") or {})
        rest = {name: value for name, value in spec.items() if name != "train"}
        new = {**spec, "train": train} if train else rest
        connection.execute(RUN.update().where(RUN.c.id == run_id).values(spec=new))
