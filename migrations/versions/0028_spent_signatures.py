"""spent signatures: requests that have changed something, which no other coordinator on the database does again."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "spent_signature",
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "nonce", name="pk_spent_signature"),
    )
    op.create_index("ix_spent_signature_at", "spent_signature", ["at"])
    op.create_index("ix_spent_signature_created", "spent_signature", ["key_id", "created"])


def downgrade() -> None:
    op.drop_table("spent_signature")
