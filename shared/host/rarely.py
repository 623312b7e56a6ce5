"""Says what stays as it is ever more rarely: a log may lie on the very disk that is full."""

import math
import threading
import time
from collections.abc import Callable

FIRST_S, LONGEST_S = 10.0, 3600.0
QUIET_S = 150.0
"""After so long without a word it is something new: longer than anybody waits who tries again."""


class Rarely:
    """At once, then after 10 seconds, 20, 40, up to an hour. Threads may share one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._heard = self._due = -math.inf
        self._wait = FIRST_S

    def is_due(self) -> bool:
        """To be asked whenever there is something to say."""
        with self._lock:
            now = self._clock()
            if now - self._heard >= QUIET_S:
                self._due, self._wait = now, FIRST_S
            self._heard = now
            if now < self._due:
                return False
            self._due, self._wait = now + self._wait, min(2 * self._wait, LONGEST_S)
            return True
