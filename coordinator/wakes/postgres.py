"""Tells news to every coordinator on a PostgreSQL database: with the transaction that causes it, by NOTIFY."""

import json
import secrets
from dataclasses import asdict, fields
from typing import Any

from fedcybgd.coordinator.db.notices import MOST_BYTES, Notices
from fedcybgd.coordinator.db.signals import Signals
from fedcybgd.coordinator.wakes.base import Hear
from fedcybgd.coordinator.wakes.local import LocalWakes

FROM = "from"
KINDS: dict[str, type[Any]] = {field.name: bool if field.type is bool else set for field in fields(Signals)}


class PostgresWakes:
    """What this process commits it hears at once, as `LocalWakes` does, and what others commit by a connection that listens."""

    def __init__(self, url: str) -> None:
        self._name, self._here = secrets.token_hex(4), LocalWakes()
        self._notices = Notices(url, self._heard, lambda: self._here.tell(Signals(anew=True)))
        self._begun = False

    def hear(self, heard: Hear) -> None:
        self._here.hear(heard)
        if not self._begun:
            self._begun = True
            self._notices.start()

    def notice(self, news: Signals) -> str | None:
        """As compact as it can be; what is too much for one notice has everybody read anew."""
        text = written(self._name, news)
        return text if len(text) <= MOST_BYTES else written(self._name, Signals(anew=True))

    def tell(self, news: Signals) -> None:
        self._here.tell(news)

    def listens(self) -> bool:
        return self._notices.listens

    def close(self) -> None:
        self._here.close()
        self._notices.close()

    def _heard(self, text: str) -> None:
        sender, news = understood(text)
        if sender != self._name:
            self._here.tell(news)


def written(sender: str, news: Signals) -> str:
    """In ASCII, without what is empty."""
    said: dict[str, Any] = {name: value if isinstance(value, bool) else sorted(value) for name, value in asdict(news).items() if value}
    return json.dumps({FROM: sender, **said}, separators=(",", ":"))


def understood(text: str) -> tuple[str, Signals]:
    """Who says it, and what. Of a coordinator of another version some may mean nothing here; what makes no sense at all has all read anew."""
    try:
        said = json.loads(text)
        known: dict[str, Any] = {name: kind(said[name]) for name, kind in KINDS.items() if name in said}
        return str(said.get(FROM, "")), Signals(**known)
    except (ValueError, TypeError, AttributeError):
        return "", Signals(anew=True)
