"""manifests: each is stored once, by its digest; only what somebody has, or had to the end, has one. Jobs may lose their payload."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ASSIGNMENT = sa.table("assignment", *map(sa.column, ("id", "state", "manifest_digest")), sa.column("manifest", sa.JSON()))
MANIFEST = sa.table("manifest", sa.column("digest"), sa.column("content", sa.JSON()))
JOB = sa.table("job", sa.column("payload", sa.JSON()))
KEPT = sa.text("payload IS NOT NULL")
NOTHING: dict[str, list[str]] = {"files": [], "blocks": [], "dropped": []}
TOGETHER = 500


def upgrade() -> None:
    op.create_table(
        "manifest",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_manifest")),
    )
    with op.batch_alter_table("assignment") as batch:
        batch.add_column(sa.Column("manifest_digest", sa.String(length=64), nullable=True))
    connection = op.get_bind()
    stored: set[str] = set()
    # What nobody has was never given to anybody: all blocks exact, as they were when its round was opened.
    given = sa.select(ASSIGNMENT.c.id).where(ASSIGNMENT.c.state != "pending").order_by(ASSIGNMENT.c.id)
    ids = list(connection.scalars(given))
    for first in range(0, len(ids), TOGETHER):
        some = sa.select(ASSIGNMENT.c.id, ASSIGNMENT.c.manifest).where(ASSIGNMENT.c.id.in_(ids[first : first + TOGETHER]))
        for assignment_id, manifest in connection.execute(some).all():
            text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
            digest = hashlib.sha256(text.encode()).hexdigest()
            if digest not in stored:
                connection.execute(MANIFEST.insert().values(digest=digest, content=manifest))
                stored.add(digest)
            connection.execute(ASSIGNMENT.update().where(ASSIGNMENT.c.id == assignment_id).values(manifest_digest=digest))
    with op.batch_alter_table("assignment") as batch:
        batch.drop_column("manifest")
        batch.create_foreign_key(op.f("fk_assignment_manifest_digest_manifest"), "manifest", ["manifest_digest"], ["digest"])
        batch.create_index("ix_assignment_manifest", ["manifest_digest"])
    with op.batch_alter_table("job") as batch:
        batch.alter_column("payload", existing_type=sa.JSON(), nullable=True)
    op.create_index("ix_job_kept", "job", ["ended_at"], sqlite_where=KEPT, postgresql_where=KEPT)


def downgrade() -> None:
    op.drop_index("ix_job_kept", "job")
    op.execute(JOB.update().where(JOB.c.payload.is_(sa.null())).values(payload={}))
    with op.batch_alter_table("job") as batch:
        batch.alter_column("payload", existing_type=sa.JSON(), nullable=False)
    with op.batch_alter_table("assignment") as batch:
        batch.add_column(sa.Column("manifest", sa.JSON(), nullable=True))
    connection = op.get_bind()
    for digest, content in connection.execute(sa.select(MANIFEST.c.digest, MANIFEST.c.content)).all():
        connection.execute(ASSIGNMENT.update().where(ASSIGNMENT.c.manifest_digest == digest).values(manifest=content))
    connection.execute(ASSIGNMENT.update().where(ASSIGNMENT.c.manifest_digest.is_(None)).values(manifest=NOTHING))
    with op.batch_alter_table("assignment") as batch:
        batch.alter_column("manifest", existing_type=sa.JSON(), nullable=False)
        batch.drop_index("ix_assignment_manifest")
        batch.drop_constraint(op.f("fk_assignment_manifest_digest_manifest"), type_="foreignkey")
        batch.drop_column("manifest_digest")
    op.drop_table("manifest")
