"""Waits for what may pass, and ends the waiting when the coordinator stops."""

import logging
import random
import threading
from collections.abc import Callable
from typing import TypeVar

from fedcybgd.coordinator.db.outage import reason
from fedcybgd.shared.host.rarely import Rarely

log = logging.getLogger("fedcoord.jobs")
T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 30.0


class LaneStopped(Exception):
    """The coordinator stops: what the lane was at is done again, here or elsewhere."""


class Patience:
    """Of one lane, until it is stopped."""

    def __init__(self, who: str) -> None:
        self._who, self._stopping = who, threading.Event()

    def end(self) -> None:
        self._stopping.set()

    @property
    def ended(self) -> bool:
        return self._stopping.is_set()

    def rest(self, seconds: float) -> None:
        """Raises `LaneStopped` when the coordinator stops meanwhile."""
        if self._stopping.wait(seconds):
            raise LaneStopped

    def take(self, what: str, step: Callable[[], T], passes: Callable[[Exception], bool]) -> T:
        """Take a step, again and again while what hinders it may pass, with growing and jittered waits. Raises `LaneStopped` in between."""
        wait, rarely = FIRST_WAIT_S, Rarely()
        while True:
            try:
                return step()
            except Exception as error:
                if not passes(error):
                    raise
                if self.ended:
                    raise LaneStopped from error
                if rarely.is_due():
                    log.warning("%s cannot %s yet (%s); it tries again", self._who, what, reason(error))
            if self._stopping.wait(wait * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter
                raise LaneStopped
            wait = min(2 * wait, LONGEST_WAIT_S)
