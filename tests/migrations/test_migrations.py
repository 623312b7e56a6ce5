"""The migrations build exactly the tables of the models, take them away again, and build them again; on both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from coordinator.db import migrate, models
from coordinator.db.base import Base, Database, open_engine


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
            sorted(map(repr, seen.get_indexes(table))),
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
        connection.execute(text("INSERT INTO operator_key (key_hash, created_at) VALUES ('a', '2025-01-01 00:00:00+00:00')"))
    before = shape(engine)
    migrate.upgrade(engine)
    assert shape(engine) == before
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT key_hash FROM operator_key")) == "a"


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
