"""uploads: those that lie in object storage, and the objects that their bytes are in; and which secret a webhook is signed with."""

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "upload",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("place", sa.String(80), nullable=False),
        sa.Column("owner", sa.String(40), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.Column("checked_by", sa.String(40), nullable=True),
        sa.Column("checked_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_upload_place", "upload", ["place", "owner", "digest"], unique=True)
    op.create_index("ix_upload_touched_at", "upload", ["touched_at"])
    op.create_table(
        "upload_piece",
        sa.Column("name", sa.String(120), primary_key=True),
        sa.Column("upload_id", sa.String(40), sa.ForeignKey("upload.id"), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_upload_piece_upload_id", "upload_piece", ["upload_id"])
    op.add_column("instance", sa.Column("webhook_secret", sa.String(64), nullable=True))


def downgrade() -> None:
    op.drop_column("instance", "webhook_secret")
    op.drop_table("upload_piece")
    op.drop_table("upload")
