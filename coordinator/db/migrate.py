"""Brings the database to the schema of this version, or takes it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from fedcybgd.coordinator.db.alone import wait_alone


def _config(connection: Any = None) -> Config:
    config = Config()
    config.set_main_option("script_location", "fedcybgd.migrations:")
    config.attributes["connection"] = connection
    return config


@contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction, and nobody else migrates meanwhile. SQLite changes a table by making it anew, and must not mind meanwhile who refers to it."""
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            with connection.begin():
                wait_alone(connection)
                yield connection
            return
        sqlite: Any = connection.connection.driver_connection
        sqlite.execute("PRAGMA foreign_keys=OFF")  # before the transaction: within one it has no effect
        try:
            with connection.begin():
                yield connection
                if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
                    raise RuntimeError(f"the migration would leave rows that refer to nothing: {broken[:5]}")
        finally:
            sqlite.execute("PRAGMA foreign_keys=ON")


def check_known(revision: str | None) -> None:
    """Raise alembic's `CommandError` for a schema that only a newer program knows."""
    if revision is not None:
        ScriptDirectory.from_config(_config()).get_revision(revision)


def upgrade(engine: Engine, revision: str = "head") -> None:
    with _migrating(engine) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(engine: Engine, revision: str) -> None:
    with _migrating(engine) as connection:
        command.downgrade(_config(connection), revision)


def current(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def newest() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def revision(engine: Engine, message: str) -> None:
    """Write a new migration from the difference between models and database (for developers)."""
    with engine.connect() as connection:
        command.revision(_config(connection), message, autogenerate=True, rev_id=f"{len(list(_scripts())) + 1:04d}")


def _scripts() -> Any:
    return ScriptDirectory.from_config(_config()).walk_revisions()
