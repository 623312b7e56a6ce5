"""quarantine: failures are counted by visit and agent."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("agent") as batch:
        batch.add_column(sa.Column("strikes", sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("quarantines", sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("quarantined_until", sa.DateTime(timezone=True), nullable=True))
        batch.create_index("ix_agent_quarantined_until", ["quarantined_until"])
    with op.batch_alter_table("assignment") as batch:
        batch.add_column(sa.Column("failed", sa.JSON(), nullable=False, server_default="{}"))
    for table, columns in {"agent": ("strikes", "quarantines"), "assignment": ("failed",)}.items():
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.alter_column(column, existing_type=sa.JSON() if column == "failed" else sa.Integer(), server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("assignment") as batch:
        batch.drop_column("failed")
    with op.batch_alter_table("agent") as batch:
        batch.drop_index("ix_agent_quarantined_until")
        for column in ("quarantined_until", "quarantines", "strikes"):
            batch.drop_column(column)
