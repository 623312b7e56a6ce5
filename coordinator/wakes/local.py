"""Tells news within one process: whoever commits it calls whoever hears."""

import logging

from fedcybgd.coordinator.db.signals import Signals
from fedcybgd.coordinator.wakes.base import Hear

log = logging.getLogger("fedcoord.wakes")


class LocalWakes:
    def __init__(self) -> None:
        self._hearing: list[Hear] = []

    def hear(self, heard: Hear) -> None:
        self._hearing.append(heard)

    def notice(self, news: Signals) -> str | None:  # noqa: ARG002 - there are no others
        return None

    def tell(self, news: Signals) -> None:
        for heard in list(self._hearing):
            try:
                heard(news)
            except Exception:
                log.exception("news was not taken in; what it says is found in the database later")

    def listens(self) -> bool:
        return True

    def close(self) -> None:
        self._hearing.clear()
