"""Databases with today's schema: migrated once, before workers are forked, and copied wherever a test begins with one."""

import functools
import shutil
import tempfile
from pathlib import Path

from sqlalchemy import make_url

from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.db.base import Database


def bring_up(url: str) -> None:
    database = Database(url)
    migrate.upgrade(database.engine)
    database.close()


@functools.cache
def template() -> Path:
    """A migrated SQLite database without rows, to be copied."""
    path = Path(tempfile.mkdtemp(prefix="fedcybgd-migrated-")) / "template.db"
    bring_up(f"sqlite:///{path}")
    assert [file.name for file in path.parent.iterdir()] == [path.name], "all of it is in one file"
    return path


def begin_with_schema(url: str) -> None:
    """Where the SQLite database of `url` is not there yet, it is what twenty migrations would have made of an empty one."""
    place = make_url(url).database
    if url.startswith("sqlite") and place is not None and not Path(place).exists():
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template(), place)
