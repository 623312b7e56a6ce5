"""Ties a database to the way in which its news travels."""

from fedcybgd.coordinator.db import notices
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.wakes.base import Wakes


def carry(database: Database, wakes: Wakes) -> None:
    """From now on what transactions say by signals is told: to others with the commit, here after it."""
    database.before_commit, database.after_commit = notices.sender(wakes.notice), wakes.tell
