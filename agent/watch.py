"""Whether the training process still gets somewhere, by what it says and by how long it says nothing."""

import time
from collections.abc import Callable

from fedcybgd.agent.messages import TrainerEvent
from fedcybgd.agent.policy import PolicyRefused
from fedcybgd.shared.contract.assignments import Progress

AWAY_S = 10.0
"""Looks that are so far apart are not a training process that hangs, but a daemon that did."""
SILENT_S = 90.0
"""The process says that it lives every few seconds; one that says nothing for so long is stopped, or its machine is."""
BEFORE_THAT = 0.75
"""When a visit is given up here, of the time after which the coordinator takes it back: then the reason is known."""
WORKED_S = 0.05
"""Processor seconds between two signs of life, from which on the process does something: less takes no work"""
START_S = 300.0
"""A process that starts has no steps to end: it imports torch, which takes long from a slow disk. After that it hangs."""


def is_beside_training(progress: Progress) -> bool:
    """Before the first step and after the last there are none to count."""
    return progress.phase == "loading" or 0 < progress.steps <= progress.step


class Watch:
    """Whether the training process still gets somewhere. Time that the machine sleeps does not count."""

    def __init__(
        self, stall_s: float, given_s: float | None, most_s: float, starting: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`stall_s` is the owner's limit. `given_s` is after how long the coordinator takes the visit back: it is told before that."""
        self._stall_s, self._given_s, self._most_s, self._clock = stall_s, given_s, most_s, clock
        self.starting = starting
        """Whether the process has yet to say that it is ready for visits"""
        self._began = self._heard = self._moved = self._said = self._looked = clock()
        self._asked: float | None = None
        self._beside, self._cpu_s = True, 0.0

    def heard(self, event: TrainerEvent) -> bool:
        """Whether the process gets somewhere by what it says: where it has no steps to count, also by what it uses of the processor."""
        self._heard = self._clock()
        self.starting = self.starting and event.event in ("walled", "alive")
        if event.event == "alive":
            used, self._cpu_s = (event.cpu_s or 0.0) - self._cpu_s, event.cpu_s or 0.0
            if not self._beside or used < WORKED_S:
                return False
        else:
            self._beside, self._said = event.progress is None or is_beside_training(event.progress), self._heard
        self._moved = self._heard
        return True

    def stalled(self) -> float | None:
        """For how many seconds nothing has moved, if that is too long; None while all is well."""
        now = self._clock()
        away, self._looked = now - self._looked, now
        if away > AWAY_S:  # this process was stopped itself: what was said meanwhile is still to be read
            self._heard, self._moved, self._said = self._heard + away, self._moved + away, self._said + away
        silent, still = now - self._heard, now - self._moved
        stall_s = max(self._stall_s, START_S) if self.starting else self._stall_s
        still_s = min(stall_s, BEFORE_THAT * self._given_s) if self._given_s is not None else stall_s
        if now - self._said > stall_s:  # it may use the processor and come to nothing
            still = now - self._said
        return max(silent, still) if silent > min(SILENT_S, still_s) or still > still_s else None

    def check_time(self) -> None:
        """Raises `PolicyRefused` when the visit takes longer than it may."""
        if self._clock() - self._began > self._most_s:
            raise PolicyRefused("most.seconds", f"training took longer than {self._most_s:g} s and was ended", f"{self._most_s:g}")

    def heeds_no_stop(self, within_s: float) -> bool:
        """Whether a stop that was asked for is overdue; asking counts from the first call."""
        if self._asked is None:
            self._asked = self._clock()
        return self._clock() - self._asked > within_s
