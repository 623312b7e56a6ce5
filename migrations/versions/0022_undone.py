"""undone: agents whose deltas were taken out of a run."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("run") as batch:
        batch.add_column(sa.Column("without", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("run") as batch:
        batch.alter_column("without", existing_type=sa.JSON(), server_default=None)


def downgrade() -> None:
    # What was undone is what an earlier schema calls rejected: it does not count, and another stands in its place.
    op.execute(sa.text("UPDATE assignment SET state = 'rejected' WHERE state = 'undone'"))
    with op.batch_alter_table("run") as batch:
        batch.drop_column("without")
