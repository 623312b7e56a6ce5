"""Being asked to stop: what only waits ends at once, what does something comes to the end of its step."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fedcybgd.agent.errors import StopRequested

log = logging.getLogger("fedagent")
LEAVE_WITHIN_S = 9.0
"""Seconds from the first signal to the end, whatever training process or coordinator do"""


class Stop:
    """`asked` once SIGTERM or SIGINT came; `on_asked` is called then, unless the main thread only waits.

    `overdue` is called from another thread where the program has not come to its end by itself: whatever holds it up, nobody has to ask twice.
    `on_pause` is called before each pause: who waits on purpose does not hang.
    """

    def __init__(
        self, on_asked: Callable[[], None], overdue: Callable[[], None] | None = None, on_pause: Callable[[], None] | None = None
    ) -> None:
        self.asked = False
        self._on_pause = on_pause
        self._on_asked = on_asked
        self._overdue = threading.Timer(LEAVE_WITHIN_S, overdue) if overdue is not None else None
        self._waits = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)  # asked twice
        log.info("stopping; once more to stop without giving work back")
        self.asked = True
        if self._overdue is not None:
            self._overdue.daemon = True
            self._overdue.start()
        if self._waits:
            raise StopRequested
        self._on_asked()

    def left(self) -> None:
        """The end has come by itself."""
        if self._overdue is not None:
            self._overdue.cancel()

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
        if self._on_pause is not None:
            self._on_pause()
        with self.waiting():
            time.sleep(seconds)
