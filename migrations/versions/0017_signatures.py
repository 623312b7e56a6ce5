"""signatures: agents have public keys; tokens have a number of uses, can be withdrawn, and may be for an agent that is there."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

TOKEN = sa.table("enrolment_token", *map(sa.column, ("used", "uses", "used_at", "expires_at", "withdrawn_at", "agent_id")))


def upgrade() -> None:
    with op.batch_alter_table("agent") as batch:
        batch.add_column(sa.Column("public_key", sa.String(length=60), nullable=True))
    with op.batch_alter_table("enrolment_token") as batch:
        batch.add_column(sa.Column("agent_id", sa.String(length=40), nullable=True))
        batch.add_column(sa.Column("uses", sa.Integer(), nullable=False, server_default="1"))
        batch.add_column(sa.Column("used", sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True))
        batch.create_foreign_key(op.f("fk_enrolment_token_agent_id_agent"), "agent", ["agent_id"], ["id"])
        batch.create_index("ix_enrolment_token_created", ["created_at", "id"])
    op.execute(TOKEN.update().where(TOKEN.c.used_at.is_not(None)).values(used=1))
    with op.batch_alter_table("enrolment_token") as batch:
        batch.alter_column("uses", existing_type=sa.Integer(), server_default=None)
        batch.alter_column("used", existing_type=sa.Integer(), server_default=None)


def downgrade() -> None:
    # The older schema knows neither limits nor withdrawal: what may not be used any more must look used.
    over = TOKEN.c.withdrawn_at.is_not(None) | (TOKEN.c.used >= TOKEN.c.uses) | TOKEN.c.agent_id.is_not(None)
    op.execute(TOKEN.update().where(TOKEN.c.used_at.is_(None), over).values(used_at=TOKEN.c.expires_at))
    with op.batch_alter_table("enrolment_token") as batch:
        batch.drop_index("ix_enrolment_token_created")
        batch.drop_constraint(op.f("fk_enrolment_token_agent_id_agent"), type_="foreignkey")
        batch.drop_column("withdrawn_at")
        batch.drop_column("used")
        batch.drop_column("uses")
        batch.drop_column("agent_id")
    with op.batch_alter_table("agent") as batch:
        batch.drop_column("public_key")
