"""event indexes: the events of an agent and of a code are found without looking at all others."""

from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_event_agent", "event", ["agent_id", "id"])
    op.create_index("ix_event_code", "event", ["code", "id"])


def downgrade() -> None:
    op.drop_index("ix_event_code", "event")
    op.drop_index("ix_event_agent", "event")
