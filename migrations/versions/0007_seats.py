"""seats: a round is a list of seats, and an assignment is one of them; it may be of several blocks."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ROUND = sa.table("round", *map(sa.column, ("run_id", "number", "cycle")), sa.column("blocks", sa.JSON()), sa.column("seats", sa.JSON()))
ASSIGNMENT = sa.table(
    "assignment", *map(sa.column, ("id", "run_id", "round", "block", "seat", "meant_for", "waiting_since")),
    sa.column("blocks", sa.JSON()), sa.column("train", sa.JSON()),
)  # fmt: skip


def upgrade() -> None:
    with op.batch_alter_table("round") as batch:
        batch.add_column(sa.Column("seats", sa.JSON(), nullable=True))
    with op.batch_alter_table("assignment") as batch:
        batch.add_column(sa.Column("seat", sa.Integer(), nullable=True))
        batch.add_column(sa.Column("blocks", sa.JSON(), nullable=True))
    connection = op.get_bind()
    columns = (ROUND.c.run_id, ROUND.c.number, ROUND.c.cycle, ROUND.c.blocks)
    for run_id, number, cycle, blocks in connection.execute(sa.select(*columns)).all():
        seats = _seats(connection, run_id, number, cycle, blocks)
        this = (ROUND.c.run_id == run_id) & (ROUND.c.number == number)
        connection.execute(ROUND.update().where(this).values(seats=seats))
    with op.batch_alter_table("round") as batch:
        batch.alter_column("seats", existing_type=sa.JSON(), nullable=False)
    with op.batch_alter_table("assignment") as batch:
        batch.alter_column("seat", existing_type=sa.Integer(), nullable=False)
        batch.alter_column("blocks", existing_type=sa.JSON(), nullable=False)
        batch.drop_column("block")


def _seats(connection: sa.Connection, run_id: str, number: int, cycle: int, blocks: list[str]) -> list[dict[str, Any]]:
    """What a round asked for, as its assignments have it: each block was a seat."""
    of_round = (ASSIGNMENT.c.run_id == run_id) & (ASSIGNMENT.c.round == number)
    columns = (ASSIGNMENT.c.block, ASSIGNMENT.c.meant_for, ASSIGNMENT.c.train)
    newest: dict[str, Any] = {
        row[0]: row for row in connection.execute(sa.select(*columns).where(of_round).order_by(ASSIGNMENT.c.waiting_since))
    }
    seats = []
    for seat, block in enumerate(blocks):
        # The first group is the visited block's, the second that of the blocks trained along.
        _, meant_for, train = newest.get(block, (block, None, {}))
        rates = [group["learning_rate"] for group in train.get("groups", [])] or [0.0]
        seats.append({
            "round": number, "number": seat, "cycle": cycle, "blocks": [block], "agent": meant_for, "learning_rate": rates[0],
            "always_learning_rate": rates[-1], "seed": train.get("seed", 0),
        })  # fmt: skip
        connection.execute(ASSIGNMENT.update().where(of_round & (ASSIGNMENT.c.block == block)).values(seat=seat, blocks=[block]))
    return seats


def downgrade() -> None:
    """A seat of several blocks is kept as its first."""
    with op.batch_alter_table("assignment") as batch:
        batch.add_column(sa.Column("block", sa.String(length=100), nullable=True))
    connection = op.get_bind()
    for (blocks,) in connection.execute(sa.select(sa.cast(ASSIGNMENT.c.blocks, sa.Text())).distinct()).all():
        same = sa.cast(ASSIGNMENT.c.blocks, sa.Text()) == blocks
        connection.execute(ASSIGNMENT.update().where(same).values(block=json.loads(blocks)[0]))
    with op.batch_alter_table("assignment") as batch:
        batch.alter_column("block", existing_type=sa.String(length=100), nullable=False)
        batch.drop_column("seat")
        batch.drop_column("blocks")
    with op.batch_alter_table("round") as batch:
        batch.drop_column("seats")
