"""Ties a database to the way in which its news travels."""

from fedcybgd.coordinator.db import notices
from fedcybgd.coordinator.db.base import Database, Session
from fedcybgd.coordinator.db.signals import Signals
from fedcybgd.coordinator.wakes.base import Wakes


def carry(database: Database, wakes: Wakes) -> None:
    """From now on what transactions say by signals is told: to others with the commit, here after it."""

    def notify(news: Signals, session: Session) -> None:
        if (notice := wakes.notice(news)) is not None:
            notices.notify(session, notice)

    database.before_commit, database.after_commit = notify, wakes.tell
