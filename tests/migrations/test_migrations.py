"""The migrations build exactly the tables of the models, take them away again, and build them again; on both databases."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import migrate, models
from fedcybgd.coordinator.db.base import Base, Database, open_engine
from fedcybgd.shared.contract.agents import DeclaredLimits
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.database_decides


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def difference(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        found: list[object] = compare_metadata(context, Base.metadata)
        return found


def shape(engine: Engine) -> dict[str, object]:
    """Columns, keys and indexes of every table, as the database tells them."""
    seen = inspect(engine)
    return {
        table: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in seen.get_columns(table)],
            seen.get_pk_constraint(table),
            sorted(map(repr, seen.get_foreign_keys(table))),
            sorted(
                repr({**i, "dialect_options": {k: str(v) for k, v in i.get("dialect_options", {}).items()}})
                for i in seen.get_indexes(table)
            ),
            sorted(map(repr, seen.get_unique_constraints(table))),
        )
        for table in sorted(tables(engine))
    }


def test_an_empty_database_is_brought_to_the_models(engine: Engine) -> None:
    assert migrate.current(engine) is None
    migrate.upgrade(engine)
    assert migrate.current(engine) == migrate.newest()
    assert tables(engine) == set(Base.metadata.tables)
    assert difference(engine) == []


def test_up_down_and_up_again(engine: Engine) -> None:
    migrate.upgrade(engine)
    first = shape(engine)
    migrate.downgrade(engine, "base")
    assert tables(engine) == set()
    assert migrate.current(engine) is None
    migrate.upgrade(engine)
    assert shape(engine) == first
    assert difference(engine) == []


def test_a_second_upgrade_changes_nothing(engine: Engine) -> None:
    migrate.upgrade(engine)
    with engine.begin() as connection:
        row = "'opr_1', 'ada', 'owner', 'a', '2025-01-01 00:00:00+00:00'"
        connection.execute(text(f"INSERT INTO operator (id, name, role, key_hash, created_at) VALUES ({row})"))
    before = shape(engine)
    migrate.upgrade(engine)
    assert shape(engine) == before
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT key_hash FROM operator")) == "a"


START = """
import sys
from pathlib import Path
from fedcybgd.coordinator.serve import prepare_home
from fedcybgd.coordinator.settings import Settings
print(prepare_home(Settings(home=Path(sys.argv[1]), database_url=sys.argv[2])))
"""


@pytest.mark.postgresql
def test_two_coordinators_that_start_at_once_on_an_empty_database_both_come_up(postgres: PostgresServer, tmp_path: Path) -> None:
    url = postgres.new_database()
    started = [
        subprocess.Popen([sys.executable, "-c", START, str(tmp_path / name), url], stdout=subprocess.PIPE) for name in ("one", "other")
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sorted(answer == b"None" for answer in said) == [False, True], "one operator's key, shown by whoever made it"
    engine = open_engine(url)
    assert migrate.current(engine) == migrate.newest()
    assert difference(engine) == []
    engine.dispose()


def test_the_migrations_are_one_line_from_base_to_head() -> None:
    revisions = list(reversed(list(migrate._scripts())))
    assert [r.revision for r in revisions] == [f"{number:04d}" for number in range(1, len(revisions) + 1)]
    assert [r.down_revision for r in revisions] == [None, *(r.revision for r in revisions[:-1])]
    assert revisions[-1].revision == migrate.newest()


def test_foreign_keys_are_enforced(database_url: str) -> None:
    database = Database(database_url)
    migrate.upgrade(database.engine)
    evaluation = "INSERT INTO evaluation (run_id, after_rounds, metrics, created_at) VALUES ('run_x', 1, '{}', '2025-01-01 00:00:00+00:00')"
    with pytest.raises(IntegrityError), database.transaction() as session:
        session.execute(text(evaluation))
    database.close()


def test_every_table_of_the_models_is_in_the_metadata() -> None:
    declared = {c.__tablename__ for c in vars(models).values() if isinstance(c, type) and issubclass(c, Base) and c is not Base}
    assert declared == set(Base.metadata.tables)


def test_sqlite_writes_ahead_syncs_and_waits(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'test.db'}")
    for _ in range(2):  # a second connection of the pool as well
        with engine.connect() as one, engine.connect() as two:
            for connection in (one, two):
                assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
                assert connection.scalar(text("PRAGMA synchronous")) >= 1
                assert connection.scalar(text("PRAGMA foreign_keys")) == 1
                assert connection.scalar(text("PRAGMA busy_timeout")) == 30_000
    engine.dispose()


# ---- rows that are there survive ------------------------------------------------------------------------------------

AT = "2025-01-01 00:00:00+00:00"
# As the first version wrote them.
SPEC = (
    '{"name": "r", "model": "bert", "task": {"kind": "text-classification", "labels": 2, "max_length": 64}, "schedule": {"cycles": 2}, '
    '"train": {"steps": 4, "epochs": null, "learning_rate": 0.001}, "agents": "all", "lease_s": 60.0, "seed": 3}'
)
DIGEST = "d" * 64
MANIFEST = (
    f'{{"files": [{{"name": "config.json", "digest": "{DIGEST}", "size": 2}}], '
    f'"blocks": [{{"block": "layers.0", "version": 1, "codec": "exact", "digest": "{DIGEST}", "size": 5}}]}}'
)
TRAIN = (
    '{"task": "text-classification", "num_labels": 2, "label_names": null, "groups": [{"blocks": ["layers.0"], "learning_rate": 0.001}], '
    '"steps": 4, "epochs": 1.0, "batch_size": 16, "max_length": 64, "seed": 3}'
)


def fill_0001(engine: Engine) -> None:
    """A run of the first schema: round 0 is closed, round 1 is open and its assignment is leased."""
    with engine.begin() as connection:

        def insert(table: str, **values: object) -> None:
            names = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            connection.execute(text(f'INSERT INTO "{table}" ({names}) VALUES ({marks})'), values)

        insert("agent", id="agt_a", name="ann", key_hash="h", state="active", device='{"kind": "cpu"}', version="1", enrolled_at=AT)
        insert(
            "model", id="mod_m", name="bert", source="s", state="ready", config="{}", files="[]", blocks="[]", left_out="[]",
            num_parameters=7, created_at=AT,
        )  # fmt: skip
        insert(
            "run", id="run_r", name="r", model_id="mod_m", spec=SPEC, state="running", prepared=True, files="[]",
            trained_blocks='["layers.0", "layers.1"]', participants='["agt_a"]', rounds_total=4, created_at=AT,
        )  # fmt: skip
        insert(
            "block",
            run_id="run_r",
            name="layers.0",
            position=0,
            kind="layer",
            version=1,
            digest="d",
            size=5,
            num_parameters=7,
            tensors="[]",
        )
        insert("round", run_id="run_r", number=0, cycle=0, block="layers.0", state="closed", opened_at=AT, closed_at=AT)
        insert("round", run_id="run_r", number=1, cycle=0, block="layers.1", state="open", opened_at=AT)
        for number, block, state in ((0, "layers.0", "rejected"), (0, "layers.0", "accepted"), (1, "layers.1", "leased")):
            insert(
                "assignment", id=f"asg_{number}_{state}", run_id="run_r", round=number, block=block, state=state, attempt=1, failures=0,
                excluded="[]", agent_id="agt_a", waiting_since=AT, manifest=MANIFEST, train=TRAIN,
            )  # fmt: skip


def rows(engine: Engine, query: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def everything(engine: Engine) -> dict[str, list[str]]:
    """All rows of all tables, with the names of their columns; the columns in an order of their own."""
    found = {}
    for table in sorted(tables(engine)):
        with engine.connect() as connection:
            found[table] = sorted(repr(sorted(row._mapping.items())) for row in connection.execute(text(f'SELECT * FROM "{table}"')))
    return found


def test_a_run_of_the_first_schema_goes_on_in_the_newest(engine: Engine) -> None:
    migrate.upgrade(engine, "0001")
    fill_0001(engine)
    migrate.upgrade(engine)
    with Session(engine) as session:
        rounds = session.scalars(select(models.Round).order_by(models.Round.number)).all()
        assert [(r.blocks, r.state, r.loss_before, r.loss_after) for r in rounds] == [
            (["layers.0"], "closed", None, None),
            (["layers.1"], "open", None, None),
        ]
        seats = [seat for r in rounds for seat in r.seats]
        assert [(s.round, s.number, s.blocks, s.agent) for s in seats] == [(0, 0, ("layers.0",), None), (1, 0, ("layers.1",), None)]
        told = json.loads(TRAIN)
        assert all((s.seed, s.learning_rate) == (told["seed"], told["groups"][0]["learning_rate"]) for s in seats), "as it was told"
        assignments = session.scalars(select(models.Assignment).order_by(models.Assignment.id)).all()
        assert [(a.round, a.seat, a.blocks, a.block) for a in assignments] == [
            (0, 0, ["layers.0"], "layers.0"), (0, 0, ["layers.0"], "layers.0"), (1, 0, ["layers.1"], "layers.1"),
        ]  # fmt: skip
        assert {a.id: a.applied for a in assignments} == {"asg_0_accepted": True, "asg_0_rejected": False, "asg_1_leased": False}
        assert all(a.train.trained == ("layers.0",) and a.manifest.digests() == {DIGEST} for a in assignments)
        assert session.get_one(models.Agent, "agt_a").limits == DeclaredLimits()
        assert session.get_one(models.Block, ("run_r", "layers.0")).influence is None
        run = session.get_one(models.Run, "run_r")
        assert (run.participants, run.spec.schedule.cycles, run.spec.delta.codec) == (["agt_a"], 2, "int8")
        foreign = session.scalar(select(models.Assignment.agent_id).where(models.Assignment.id == "asg_1_leased"))
        assert foreign == "agt_a"
    assert difference(engine) == []


def test_the_way_back_to_the_first_schema_loses_nothing_of_it(engine: Engine) -> None:
    migrate.upgrade(engine, "0001")
    fill_0001(engine)
    before = everything(engine)
    migrate.upgrade(engine)
    migrate.downgrade(engine, "0001")
    assert everything(engine) == before
    migrate.upgrade(engine)
    assert difference(engine) == []
    assert rows(engine, "SELECT number, state FROM round ORDER BY number") == [(0, "closed"), (1, "open")]


def test_the_first_block_of_a_wave_is_what_the_first_schema_can_keep(engine: Engine) -> None:
    migrate.upgrade(engine, "0001")
    fill_0001(engine)
    migrate.upgrade(engine)
    with Session(engine) as session:
        session.get_one(models.Round, ("run_r", 1)).blocks = ["layers.1", "layers.2"]
        session.commit()
    migrate.downgrade(engine, "0001")
    assert rows(engine, "SELECT number, block FROM round ORDER BY number") == [(0, "layers.0"), (1, "layers.1")]


def test_a_fidelity_that_was_not_measured_is_no_cosine_any_more(engine: Engine) -> None:
    migrate.upgrade(engine, "0001")
    fill_0001(engine)
    migrate.upgrade(engine, "0002")
    values = {"a": (-1.0, 0), "b": (0.5, 9), "c": (-1.0, 9)}
    with engine.begin() as connection:
        for plan, (cosine, count) in values.items():
            metrics = f'{{"plan": "{plan}", "cosine": {cosine}, "cosine_worst": {cosine}, "loss_real": 1.0, "loss_emulator": 1.5, "rows": {count}, "seconds": 2.0}}'
            statement = "INSERT INTO fidelity (run_id, round, block, plan, codecs, metrics, created_at) VALUES ('run_r', 0, 'layers.0', :p, '{}', :m, :at)"
            connection.execute(text(statement), {"p": plan, "m": metrics, "at": AT})
    migrate.upgrade(engine)
    with Session(engine) as session:
        found = {f.plan: f.metrics for f in session.scalars(select(models.Fidelity))}
    assert {plan: m.cosine for plan, m in found.items()} == {"a": None, "b": 0.5, "c": -1.0}
    assert found["a"].failed is not None
    assert found["a"].failed.code == "engine_failed"
    assert found["b"].failed is None
