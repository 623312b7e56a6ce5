"""progress: when an attempt was last seen to get on, for how long it may stand still, and when it is over."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("assignment") as batch:
        batch.add_column(sa.Column("progressed_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("patience_s", sa.Double(), nullable=True))
        batch.add_column(sa.Column("ends_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("assignment") as batch:
        for column in ("ends_at", "patience_s", "progressed_at"):
            batch.drop_column(column)
