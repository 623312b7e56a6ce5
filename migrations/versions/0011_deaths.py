"""deaths: a job is held responsible for the engines that died under it, not for coordinators that stopped."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("job") as batch:
        batch.add_column(sa.Column("deaths", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("job") as batch:
        batch.alter_column("deaths", existing_type=sa.Integer(), server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("job") as batch:
        batch.drop_column("deaths")
