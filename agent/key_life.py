"""When it is time for another key, as the coordinator said."""

import time
from collections.abc import Callable


class KeyLife:
    """By two clocks: one may be set, and the other stands still while the machine sleeps."""

    def __init__(self, renews_in_s: float, clocks: tuple[Callable[[], float], ...] = (time.time, time.monotonic)) -> None:
        self._renews_in_s, self._clocks = renews_in_s, clocks
        self._heard = [clock() for clock in clocks]

    def is_half_over(self) -> bool:
        """Time for another key: as much is left as has passed."""
        return max(clock() - heard for clock, heard in zip(self._clocks, self._heard, strict=True)) >= self._renews_in_s
