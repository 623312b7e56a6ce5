"""head calibration: what was done to the head that a run ended with."""

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("block_version") as batch:
        batch.add_column(sa.Column("calibration", sa.JSON(), nullable=True))


def downgrade() -> None:
    # A run that ended with a calibrated head keeps it, and an earlier verification says that it does not know how it was made.
    with op.batch_alter_table("block_version") as batch:
        batch.drop_column("calibration")
