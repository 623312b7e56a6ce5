"""visits of an agent: they are found in the order of time."""

from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_assignment_agent", "assignment")
    op.create_index("ix_assignment_agent", "assignment", ["agent_id", "leased_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_assignment_agent", "assignment")
    op.create_index("ix_assignment_agent", "assignment", ["agent_id"])
