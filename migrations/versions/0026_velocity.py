"""velocity: what the outer optimizer of a run carries on from a version of a block."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("block_version") as batch:
        batch.add_column(sa.Column("velocity", sa.String(64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("block_version") as batch:
        batch.drop_column("velocity")
