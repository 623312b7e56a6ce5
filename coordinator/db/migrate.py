"""Brings the database to the schema of this version, or takes it back."""

from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine


def _config(connection: Any = None) -> Config:
    config = Config()
    config.set_main_option("script_location", "migrations:")
    config.attributes["connection"] = connection
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    with engine.begin() as connection:
        command.upgrade(_config(connection), revision)


def downgrade(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
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
