"""job leases: who does a job and until when, and which coordinators live."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

JOB = sa.table("job", sa.column("state", sa.String()), sa.column("cpu_s", sa.Double()))


def upgrade() -> None:
    op.create_table(
        "replica",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("home", sa.String(length=40), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replica")),
    )
    op.create_index("ix_replica_home", "replica", ["home"])
    with op.batch_alter_table("job") as batch:
        batch.add_column(sa.Column("owner", sa.String(length=40), nullable=True))
        batch.add_column(sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("moved_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("cpu_s", sa.Double(), nullable=True))
        batch.add_column(sa.Column("started_at", sa.DateTime(timezone=True), nullable=True))
    # What ran under the last version is nobody's: the coordinator that ran it is stopped.
    op.execute(JOB.update().where(JOB.c.state == "running").values(state="queued"))
    op.execute(JOB.update().values(cpu_s=0.0))
    with op.batch_alter_table("job") as batch:
        batch.alter_column("cpu_s", existing_type=sa.Double(), nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("job") as batch:
        for name in ("started_at", "cpu_s", "moved_at", "lease_expires_at", "owner"):
            batch.drop_column(name)
    op.drop_index("ix_replica_home", table_name="replica")
    op.drop_table("replica")
