"""readiness: what agents say of runs, and runs that wait for agents."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "readiness",
        sa.Column("agent_id", sa.String(length=40), nullable=False),
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("fits", sa.Boolean(), nullable=True),
        sa.Column("reason", sa.String(length=40), nullable=True),
        sa.Column("rows", sa.BigInteger(), nullable=True),
        sa.Column("exact", sa.Boolean(), nullable=False),
        sa.Column("refused", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agent.id"], name=op.f("fk_readiness_agent_id_agent")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_readiness_run_id_run")),
        sa.PrimaryKeyConstraint("agent_id", "run_id", name=op.f("pk_readiness")),
    )
    op.create_index("ix_readiness_run", "readiness", ["run_id"])
    with op.batch_alter_table("run") as batch:
        batch.add_column(sa.Column("waits_for_agents", sa.Boolean(), nullable=True))
    op.execute(sa.table("run", sa.column("waits_for_agents")).update().values(waits_for_agents=False))
    with op.batch_alter_table("run") as batch:
        batch.alter_column("waits_for_agents", existing_type=sa.Boolean(), nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("run") as batch:
        batch.drop_column("waits_for_agents")
    op.drop_index("ix_readiness_run", table_name="readiness")
    op.drop_table("readiness")
