"""averages: of the versions that the last rounds ended with, and what runs ended with."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("block_version") as batch:
        batch.add_column(sa.Column("average", sa.JSON(), nullable=True))
    with op.batch_alter_table("run") as batch:
        batch.add_column(sa.Column("conclusion", sa.JSON(), nullable=True))


def downgrade() -> None:
    # A run that ended with an average keeps it, and an earlier verification says that it does not know how it was made.
    with op.batch_alter_table("run") as batch:
        batch.drop_column("conclusion")
    with op.batch_alter_table("block_version") as batch:
        batch.drop_column("average")
