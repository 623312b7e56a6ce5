"""A database of the second schema, with all that a coordinator of that time wrote into it, goes on in the newest one.

`rows_0002.json.gz` has every row of it: a run in its third round with a visit that failed once and is held, one that was cancelled in a
wave, a draft, measurements, an export, ledgers.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import DateTime, MetaData, func, insert, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import migrate, models
from fedcybgd.coordinator.db.base import Base, Database
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.services.read import status
from fedcybgd.coordinator.services.upkeep import garbage

ROWS: dict[str, list[dict[str, Any]]] = json.loads(gzip.decompress((Path(__file__).parent / "rows_0002.json.gz").read_bytes()))
RENAMED = {"operator_key": "operator"}
NOW = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    """On the migrated database."""
    database = Database(database_url)
    migrate.upgrade(database.engine, "0002")
    tables = MetaData()
    tables.reflect(database.engine)
    with database.engine.begin() as connection:
        for table in tables.sorted_tables:
            times = [c.name for c in table.columns if isinstance(c.type, DateTime)]
            for row in ROWS.get(table.name, []):
                read = {name: datetime.fromisoformat(row[name]).replace(tzinfo=UTC) for name in times if row[name] is not None}
                connection.execute(insert(table).values(row | read))
    migrate.upgrade(database.engine)
    with database.reading() as reading:
        yield reading
    database.close()


def of_run(table: str, name: str) -> list[dict[str, Any]]:
    (run_id,) = (run["id"] for run in ROWS["run"] if run["name"] == name)
    return [row for row in ROWS[table] if row["run_id"] == run_id]


def test_no_row_is_lost_and_every_one_can_be_read(session: Session) -> None:
    """Reading checks what a column holds: what was written then is understood today."""
    tables = {mapper.class_.__tablename__: mapper.class_ for mapper in Base.registry.mappers}
    now = {RENAMED.get(name, name): rows for name, rows in ROWS.items()}
    assert set(now) <= set(tables)
    for name, rows in now.items():
        assert len(session.scalars(select(tables[name])).all()) == len(rows), name


def test_the_operators_key_is_an_owners(session: Session) -> None:
    (was,) = ROWS["operator_key"]
    (operator,) = session.scalars(select(models.Operator))
    assert (operator.key_hash, operator.role, operator.name) == (was["key_hash"], "owner", operators.FIRST)
    assert (operator.expires_at, operator.revoked_at) == (None, None)


def test_runs_stand_where_they_stood(session: Session) -> None:
    for run in session.scalars(select(models.Run)):
        was = next(row for row in ROWS["run"] if row["id"] == run.id)
        closed = [row for row in of_run("round", run.name) if row["state"] == "closed"]
        assert (run.name, run.state, run.rounds_total) == (was["name"], was["state"], was["rounds_total"])
        view = status.run_view(session, run, NOW)
        assert view.rounds_done == len(closed)
        names = {agent["id"]: agent["name"] for agent in ROWS["agent"]}
        assert view.participants == [names[agent] for agent in was["participants"]]
        # What had no word of its own then was always so: deltas went from agent to agent, and unlike labels were not allowed for.
        always = {"compression": {"delta_patches": True}, "train": {"label_skew": "none"}, "schedule": {"head_average": "damped"}}
        spec = was["spec"] | {name: was["spec"].get(name, {}) | more for name, more in always.items()}
        assert RunFile.model_validate(view.spec).model_dump(mode="json") == RunFile.model_validate(spec).model_dump(mode="json")
        blocks = {row["name"]: (row["version"], row["digest"]) for row in of_run("block", run.name)}
        assert {block.name: (block.version, block.digest) for block in view.blocks} == blocks
        bytes_of = Counter[str]()
        for row in of_run("traffic", run.name):
            bytes_of["up" if row["kind"] == "delta" else "down"] += row["bytes"]
        assert (view.bytes.down, view.bytes.up) == (bytes_of["down"], bytes_of["up"])
        assert [e.after_rounds for e in view.evaluations] == [row["after_rounds"] for row in of_run("evaluation", run.name)]


def test_what_is_held_and_what_it_needs_is_known(session: Session) -> None:
    (held,) = session.scalars(select(models.Assignment).where(models.Assignment.state == "leased"))
    (was,) = (row for row in ROWS["assignment"] if row["state"] == "leased")
    assert (held.id, held.attempt, held.failures, held.agent_id) == (was["id"], was["attempt"], was["failures"], was["agent_id"])
    needed = garbage.needed(session, NOW)
    assert {ref["digest"] for ref in (*was["manifest"]["blocks"], *was["manifest"]["files"])} <= needed
    assert {row["digest"] for row in ROWS["block"]} <= needed


def test_the_history_of_every_block_begins_with_what_was_there(session: Session) -> None:
    found = {(v.run_id, v.block): v for v in session.scalars(select(models.BlockVersion))}
    assert len(found) == len(ROWS["block"])
    for row in ROWS["block"]:
        version = found[row["run_id"], row["name"]]
        assert (version.version, version.digest, version.size) == (row["version"], row["digest"], row["size"])
        assert (version.parent, version.change, version.kept, version.exact) == (None, None, True, True)
        assert version.origin == ("found" if row["version"] else "base")
        assert (version.round is None) == (row["version"] == 0)
        assert session.get_one(models.Block, (row["run_id"], row["name"])).changes == row["version"]


def test_everything_together_is_what_it_was(session: Session) -> None:
    seen = status.overview(session, NOW, "here", 0, [])
    assert {agent.name for agent in seen.agents} == {row["name"] for row in ROWS["agent"]}
    assert {run.name: run.state for run in seen.runs} == {row["name"]: row["state"] for row in ROWS["run"]}
    assert seen.bytes.up == sum(row["bytes"] for row in ROWS["traffic"] if row["kind"] == "delta")
    assert session.scalar(select(func.count()).select_from(models.Exposure)) == len(ROWS["exposure"])
