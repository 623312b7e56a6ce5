"""reading: what operators look at does not grow with what has been: counts and sums that are kept, and indexes for lists in pages."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

NEW = {
    "ix_run_created": ("run", ["created_at", "id"]),
    "ix_job_subject": ("job", ["subject", "state", "kind"]),
    "ix_job_ended": ("job", ["kind", "ended_at"]),
    "ix_exposure_first": ("exposure", ["first_at"]),
    "ix_exposure_agent": ("exposure", ["agent_id", "first_at"]),
    "ix_event_run": ("event", ["run_id", "id"]),
}
OLD = {"ix_job_subject": ("job", ["subject"]), "ix_event_run_id": ("event", ["run_id"])}


def upgrade() -> None:
    with op.batch_alter_table("run") as batch:
        batch.add_column(sa.Column("rounds_done", sa.Integer(), nullable=True))
        batch.add_column(sa.Column("notes", sa.JSON(), nullable=True))
    run, round = sa.table("run", sa.column("id"), sa.column("rounds_done")), sa.table("round", sa.column("run_id"), sa.column("state"))
    closed = sa.select(sa.func.count()).where(round.c.run_id == run.c.id, round.c.state == "closed").select_from(round).scalar_subquery()
    op.execute(run.update().values(rounds_done=closed))
    _write_notes()
    with op.batch_alter_table("run") as batch:
        batch.alter_column("rounds_done", existing_type=sa.Integer(), nullable=False)
        batch.alter_column("notes", existing_type=sa.JSON(), nullable=False)
    op.create_table(
        "traffic_total",
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_traffic_total_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", "kind", name=op.f("pk_traffic_total")),
    )
    columns = ["run_id", "kind", "bytes"]
    traffic, total = (sa.table(name, *map(sa.column, columns)) for name in ("traffic", "traffic_total"))
    sums = sa.select(traffic.c.run_id, traffic.c.kind, sa.func.sum(traffic.c.bytes)).group_by(traffic.c.run_id, traffic.c.kind)
    op.execute(total.insert().from_select(columns, sums))
    _index(OLD, NEW)


def _write_notes() -> None:
    """What of each run's model was made afresh: so far it was found out whenever somebody looked."""
    columns = [sa.column(name, sa.JSON()) for name in ("spec", "notes")]
    run = sa.table("run", sa.column("id"), sa.column("model_id"), *columns)
    model = sa.table("model", sa.column("id"), *(sa.column(name, sa.JSON()) for name in ("blocks", "config")))
    block = sa.table("block", *map(sa.column, ("run_id", "name", "position")), sa.column("tensors", sa.JSON()))
    connection = op.get_bind()
    models = {row.id: row for row in connection.execute(sa.select(model.c.id, model.c.blocks, model.c.config)).all()}
    for run_id, model_id, spec in connection.execute(sa.select(run.c.id, run.c.model_id, run.c.spec)).all():
        of_model = models[model_id]
        available = {tensor["name"]: tensor["shape"] for entry in of_model.blocks for tensor in entry["tensors"]}
        found = connection.execute(
            sa.select(block.c.name, block.c.tensors).where(block.c.run_id == run_id).order_by(block.c.position)
        ).all()
        parts = {name: _fresh(name, tensors, available) for name, tensors in found}
        said = [text for text in parts.values() if text]
        labels, before = (spec.get("task") or {}).get("labels"), of_model.config.get("id2label")
        if isinstance(labels, list) and isinstance(before, dict) and "head" in parts and parts["head"] is None:
            were = [str(before.get(str(index))) for index in range(len(labels))]
            told = f"head is the model's own, whose labels were {', '.join(were[:6])}; the run's are {', '.join(labels[:6])}, in this order"
            said += [told] if were != labels else []
        connection.execute(run.update().where(run.c.id == run_id).values(notes=said))


def _fresh(block: str, tensors: list[dict[str, Any]], available: dict[str, list[int]]) -> str | None:
    made = [tensor for tensor in tensors if available.get(tensor["name"]) != tensor["shape"]]
    listed = ", ".join(
        f"{t['name']} {t['shape']}" + (f" where the model has {available[t['name']]}" if t["name"] in available else "") for t in made[:4]
    )
    return f"{block} holds fresh, random weights ({listed})" if made else None


def downgrade() -> None:
    _index(NEW, OLD)
    op.drop_table("traffic_total")
    with op.batch_alter_table("run") as batch:
        batch.drop_column("notes")
        batch.drop_column("rounds_done")


def _index(dropped: dict[str, tuple[str, list[str]]], made: dict[str, tuple[str, list[str]]]) -> None:
    for name, (table, _) in dropped.items():
        op.drop_index(name, table_name=table)
    for name, (table, columns) in made.items():
        op.create_index(name, table, columns)
