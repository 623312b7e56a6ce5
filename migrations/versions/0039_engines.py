"""engines: which processes are coordinators, and of which lanes each does jobs.

Programs of before go on beside those of after: they are coordinators that do all.
"""

import sqlalchemy as sa
from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("replica", sa.Column("serves", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("replica", sa.Column("lanes", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("replica", "lanes")
    op.drop_column("replica", "serves")
