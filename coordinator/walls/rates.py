"""How often somebody may do something: buckets of tokens, by name."""

import math
from collections import OrderedDict
from dataclasses import dataclass

MOST_NAMES = 20_000


@dataclass(frozen=True)
class Rate:
    at_once: float
    per_s: float


class Buckets:
    """One bucket for each name; who was not heard of for longest is forgotten when there are too many."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """name → tokens, and when there were so many"""

    def take(self, name: str, now: float) -> int:
        """Take a token; 0, or the whole seconds after which there is one again."""
        left = self._filled(name, now)
        taken = left >= 1
        self._left[name] = (left - taken, now)
        self._left.move_to_end(name)
        while len(self._left) > MOST_NAMES:
            self._left.popitem(last=False)
        return 0 if taken else self._wait(left)

    def empty_for(self, name: str, now: float) -> int:
        """As `take`, without taking one."""
        return 0 if (left := self._filled(name, now)) >= 1 else self._wait(left)

    def _filled(self, name: str, now: float) -> float:
        left, at = self._left.get(name, (self._rate.at_once, now))
        return min(self._rate.at_once, left + (now - at) * self._rate.per_s)

    def _wait(self, left: float) -> int:
        return max(1, math.ceil((1 - left) / self._rate.per_s))
