"""operators by name with roles, whose first is the owner of the key that there was; logins at /admin are rows."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
FORMER = sa.table("operator_key", sa.column("key_hash"), sa.column("created_at", TIME))
OPERATOR = sa.table(
    "operator", *map(sa.column, ("id", "name", "role", "key_hash", "expires_at", "revoked_at")), sa.column("created_at", TIME)
)


def upgrade() -> None:
    op.create_table(
        "operator",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("rotated_at", TIME, nullable=True),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operator")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_operator_key_hash")),
        sa.UniqueConstraint("name", name=op.f("uq_operator_name")),
    )
    op.create_table(
        "login",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("operator_id", sa.String(length=40), nullable=False),
        sa.Column("began_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["operator_id"], ["operator.id"], name=op.f("fk_login_operator_id_operator")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_login")),
    )
    op.create_index(op.f("ix_login_operator_id"), "login", ["operator_id"])
    connection = op.get_bind()
    for number, (key_hash, created_at) in enumerate(connection.execute(sa.select(FORMER.c.key_hash, FORMER.c.created_at)).all()):
        name = "owner" if number == 0 else f"owner-{number + 1}"
        row = {"id": f"opr_{secrets.token_hex(8)}", "name": name, "role": "owner", "key_hash": key_hash, "created_at": created_at}
        connection.execute(OPERATOR.insert().values(row))
    op.drop_table("operator_key")


def downgrade() -> None:
    op.create_table(
        "operator_key",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operator_key")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_operator_key_key_hash")),
    )
    connection = op.get_bind()
    # The one key that there is room for may do everything: only an owner's may become it.
    whole = (OPERATOR.c.role == "owner") & OPERATOR.c.revoked_at.is_(None) & OPERATOR.c.expires_at.is_(None)
    owners = sa.select(OPERATOR.c.key_hash, OPERATOR.c.created_at).where(whole).order_by(OPERATOR.c.created_at).limit(1)
    for key_hash, created_at in connection.execute(owners).all():
        connection.execute(FORMER.insert().values(key_hash=key_hash, created_at=created_at))
    op.drop_index(op.f("ix_login_operator_id"), "login")
    op.drop_table("login")
    op.drop_table("operator")
