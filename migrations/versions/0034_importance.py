"""blocks: their importance, by which the cycles of a run may be ordered."""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("block") as batch:
        batch.add_column(sa.Column("importance", sa.Double(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("block") as batch:
        batch.drop_column("importance")
