"""versions of blocks: the history of every run begins with what is there; how many rounds have changed a block is counted by itself."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

BLOCK = sa.table("block", *map(sa.column, ("run_id", "name", "version", "digest", "size", "changes")))
ASSIGNMENT = sa.table("assignment", *map(sa.column, ("run_id", "round")), sa.column("applied", sa.Boolean()))
VERSION = sa.table(
    "block_version", *map(sa.column, ("run_id", "block", "version", "origin", "digest", "size", "parent", "round")),
    sa.column("change", sa.JSON(none_as_null=True)), sa.column("kept", sa.Boolean()), sa.column("exact", sa.Boolean()),
    sa.column("made_at", sa.DateTime(timezone=True)),
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "block_version",
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("block", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("origin", sa.String(length=20), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("change", sa.JSON(), nullable=True),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.Column("exact", sa.Boolean(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_block_version_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", "block", "version", name=op.f("pk_block_version")),
    )
    op.create_index("ix_block_version_kept", "block_version", ["kept", "run_id"])
    with op.batch_alter_table("block") as batch:
        batch.add_column(sa.Column("changes", sa.Integer(), nullable=True))
    op.execute(BLOCK.update().values(changes=BLOCK.c.version))
    with op.batch_alter_table("block") as batch:
        batch.alter_column("changes", existing_type=sa.Integer(), nullable=False)
    _begin_histories()


def _begin_histories() -> None:
    """The deltas that led to the present versions were deleted once they were applied: those are where the histories begin."""
    connection, now = op.get_bind(), datetime.now(UTC)
    last = sa.select(ASSIGNMENT.c.run_id, sa.func.max(ASSIGNMENT.c.round)).where(ASSIGNMENT.c.applied).group_by(ASSIGNMENT.c.run_id)
    rounds = {row[0]: row[1] for row in connection.execute(last)}
    for run_id, name, version, digest, size, _ in connection.execute(sa.select(BLOCK)).all():
        connection.execute(
            VERSION.insert().values(
                run_id=run_id, block=name, version=version, origin="found" if version else "base", digest=digest, size=size, parent=None,
                round=rounds.get(run_id) if version else None, change=None, kept=True, exact=True, made_at=now,
            )
        )  # fmt: skip


def downgrade() -> None:
    with op.batch_alter_table("block") as batch:
        batch.drop_column("changes")
    op.drop_index("ix_block_version_kept", "block_version")
    op.drop_table("block_version")
