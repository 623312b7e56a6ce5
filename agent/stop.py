"""Being asked to stop: what only waits ends at once, what does something comes to the end of its step."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fedcybgd.agent.errors import StopRequested

log = logging.getLogger("fedagent")


class Stop:
    """`asked` once SIGTERM or SIGINT came; `on_asked` is called then, unless the main thread only waits."""

    def __init__(self, on_asked: Callable[[], None]) -> None:
        self.asked = False
        self._on_asked = on_asked
        self._waits = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)  # asked twice
        log.info("stopping; once more to stop without giving work back")
        self.asked = True
        if self._waits:
            raise StopRequested
        self._on_asked()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it nothing is lost when the agent is asked to stop: `StopRequested` is raised at once, also where it was asked before."""
        before, self._waits = self._waits, True
        try:
            if self.asked:
                raise StopRequested
            yield
        finally:
            self._waits = before

    def pause(self, seconds: float) -> None:
        with self.waiting():
            time.sleep(seconds)
