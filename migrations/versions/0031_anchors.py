"""anchors: runs that train the head of another alone, as often."""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("run") as table:
        table.add_column(sa.Column("anchor_of", sa.String(length=40), nullable=True))
        table.create_index("ix_run_anchor_of", ["anchor_of"])


def downgrade() -> None:
    with op.batch_alter_table("run") as table:
        table.drop_index("ix_run_anchor_of")
        table.drop_column("anchor_of")
