"""smoothed: runs that there are go on with the loss that they have; in new ones of a classifier labels without rows have a small part in it."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None

RUN = sa.table("run", sa.column("id"), sa.column("spec", sa.JSON()))
CLASSIFICATIONS = ("text-classification", "image-classification")
BEFORE = "logit_adjustment"


def upgrade() -> None:
    connection = op.get_bind()
    for run_id, spec in connection.execute(sa.select(RUN.c.id, RUN.c.spec)).all():
        train: dict[str, Any] = spec.get("train") or {}
        if train.get("label_skew") is None and spec["task"]["kind"] in CLASSIFICATIONS:
            new = {**spec, "train": {**train, "label_skew": BEFORE}}
            connection.execute(RUN.update().where(RUN.c.id == run_id).values(spec=new))


def downgrade() -> None:
    """What is said is what was meant before, too."""
