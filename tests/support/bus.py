"""Wakes between coordinators, as a database would carry them: as text, by a thread of its own, sometimes twice."""

import json
import queue
import threading
from dataclasses import asdict

from fedcybgd.coordinator.db.signals import Signals
from fedcybgd.coordinator.wakes.base import Hear


class Bus:
    """What several coordinators share."""

    def __init__(self) -> None:
        self.ends: list[BusWakes] = []

    def tell(self, text: str) -> None:
        for end in list(self.ends):
            end.told.put(text)
            if '"lanes": []' not in text:
                end.told.put(text)


class BusWakes:
    def __init__(self, bus: Bus) -> None:
        self._bus, self._hearing = bus, list[Hear]()
        self.told: queue.Queue[str | None] = queue.Queue()
        bus.ends.append(self)
        threading.Thread(target=self._listen, daemon=True).start()

    def hear(self, heard: Hear) -> None:
        self._hearing.append(heard)

    def notice(self, news: Signals) -> str | None:
        return None

    def listens(self) -> bool:
        return True

    def tell(self, news: Signals) -> None:
        plain = {name: value if isinstance(value, bool) else sorted(value) for name, value in asdict(news).items()}
        self._bus.tell(json.dumps(plain))

    def close(self) -> None:
        if self in self._bus.ends:
            self._bus.ends.remove(self)
        self._hearing.clear()
        self.told.put(None)

    def _listen(self) -> None:
        while (text := self.told.get()) is not None:
            news = Signals(**{name: value if isinstance(value, bool) else set(value) for name, value in json.loads(text).items()})
            for heard in list(self._hearing):
                try:
                    heard(news)
                except Exception:
                    continue
