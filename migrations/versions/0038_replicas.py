"""replicas: which directory has the blobs; which program each coordinator is, and how many claims wait there.

Programs of before go on beside those of after.
"""

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instance", sa.Column("store", sa.String(40), nullable=True))
    op.add_column("replica", sa.Column("waiting_claims", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("replica", sa.Column("version", sa.String(40), nullable=True))


def downgrade() -> None:
    op.drop_column("replica", "version")
    op.drop_column("replica", "waiting_claims")
    op.drop_column("instance", "store")
