"""emulator: codecs, patches, fidelity, waves."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "encoded_shard",
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("codec", sa.String(length=20), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("packed_digest", sa.String(length=64), nullable=False),
        sa.Column("packed_size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", "codec", name=op.f("pk_encoded_shard")),
    )
    op.create_table(
        "patch",
        sa.Column("target", sa.String(length=64), nullable=False),
        sa.Column("base", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("target", "base", name=op.f("pk_patch")),
    )
    op.create_table(
        "fidelity",
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("block", sa.String(length=100), nullable=False),
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("codecs", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_fidelity_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", "round", "block", "plan", name=op.f("pk_fidelity")),
    )
    _add_filled("agent", sa.Column("limits", sa.JSON(), nullable=True), {})
    _add_filled("assignment", sa.Column("applied", sa.Boolean(), nullable=True), False)
    with op.batch_alter_table("block") as batch:
        batch.add_column(sa.Column("influence", sa.Double(), nullable=True))
    with op.batch_alter_table("round") as batch:
        batch.add_column(sa.Column("blocks", sa.JSON(), nullable=True))
        batch.add_column(sa.Column("loss_before", sa.Double(), nullable=True))
        batch.add_column(sa.Column("loss_after", sa.Double(), nullable=True))
    connection = op.get_bind()
    rounds = sa.table("round", sa.column("run_id"), sa.column("number"), sa.column("block"), sa.column("blocks", sa.JSON()))
    for run_id, number, block in connection.execute(sa.select(rounds.c.run_id, rounds.c.number, rounds.c.block)).all():
        one = (rounds.c.run_id == run_id) & (rounds.c.number == number)
        connection.execute(rounds.update().where(one).values(blocks=[block]))
    # What was accepted in a closed round is part of the blocks.
    connection.execute(
        sa.text(
            "UPDATE assignment SET applied = true WHERE state = 'accepted' AND EXISTS (SELECT 1 FROM round "
            "WHERE round.run_id = assignment.run_id AND round.number = assignment.round AND round.state = 'closed')"
        )
    )
    with op.batch_alter_table("round") as batch:
        batch.alter_column("blocks", existing_type=sa.JSON(), nullable=False)
        batch.drop_column("block")


def _add_filled(table: str, column: "sa.Column[object]", value: object) -> None:
    """Add a column that must not be null, with `value` in the rows there are."""
    name, kind = column.name, column.type
    with op.batch_alter_table(table) as batch:
        batch.add_column(column)
    rows = sa.table(table, sa.column(name, kind))
    op.get_bind().execute(rows.update().values({name: value}))
    with op.batch_alter_table(table) as batch:
        batch.alter_column(name, existing_type=kind, nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("round") as batch:
        batch.add_column(sa.Column("block", sa.String(length=100), nullable=True))
    connection = op.get_bind()
    rounds = sa.table("round", sa.column("run_id"), sa.column("number"), sa.column("block"), sa.column("blocks", sa.JSON()))
    for run_id, number, blocks in connection.execute(sa.select(rounds.c.run_id, rounds.c.number, rounds.c.blocks)).all():
        one = (rounds.c.run_id == run_id) & (rounds.c.number == number)
        connection.execute(rounds.update().where(one).values(block=blocks[0]))
    with op.batch_alter_table("round") as batch:
        batch.alter_column("block", existing_type=sa.String(length=100), nullable=False)
        batch.drop_column("blocks")
        batch.drop_column("loss_before")
        batch.drop_column("loss_after")
    with op.batch_alter_table("block") as batch:
        batch.drop_column("influence")
    with op.batch_alter_table("assignment") as batch:
        batch.drop_column("applied")
    with op.batch_alter_table("agent") as batch:
        batch.drop_column("limits")
    op.drop_table("fidelity")
    op.drop_table("patch")
    op.drop_table("encoded_shard")
