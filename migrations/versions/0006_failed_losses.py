"""failed measurements: rounds say why a loss is missing, and a fidelity that was not measured is none."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY = ("run_id", "round", "block", "plan")


def upgrade() -> None:
    with op.batch_alter_table("round") as batch:
        batch.add_column(sa.Column("loss_failed", sa.JSON(), nullable=True))
    # It was written as a cosine of -1 over no rows.
    unknown = {"code": "engine_failed", "message": "it could not be measured; the events of that time say why"}
    nothing = {"cosine": None, "cosine_worst": None, "loss_real": None, "loss_emulator": None, "failed": unknown}
    fidelity = sa.table("fidelity", *map(sa.column, KEY), sa.column("metrics", sa.JSON()))
    connection = op.get_bind()
    for *key, metrics in connection.execute(sa.select(*(fidelity.c[name] for name in KEY), fidelity.c.metrics)).all():
        if metrics["cosine"] == -1 and metrics["rows"] == 0:
            this = sa.and_(*(fidelity.c[name] == value for name, value in zip(KEY, key, strict=True)))
            connection.execute(fidelity.update().where(this).values(metrics=metrics | nothing))


def downgrade() -> None:
    with op.batch_alter_table("round") as batch:
        batch.drop_column("loss_failed")
