"""copies: which start of its daemon asks with an agent's key."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("agent") as batch:
        batch.add_column(sa.Column("daemon", sa.String(length=40), nullable=True))
        batch.add_column(sa.Column("former_daemons", sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("agent") as batch:
        batch.alter_column("former_daemons", existing_type=sa.JSON(), server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("agent") as batch:
        batch.drop_column("former_daemons")
        batch.drop_column("daemon")
