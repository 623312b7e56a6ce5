"""Two processes with one key, as from a copied home, take the work from each other. Each leaves it to the other, for longer each time."""

import random

FIRST_S, LONGEST_S = 30.0, 3600.0
TWICE = "another process works with this agent's key, perhaps from a copy of this home; stop one of the two, and enrol it by itself"


class Aside:
    """How long to wait, one time after another, until a visit comes to its end again."""

    def __init__(self) -> None:
        self._next = 0.0  # the first time may be weather: a claim that was delivered twice

    def next_s(self) -> float:
        now, self._next = self._next, min(LONGEST_S, 2 * self._next or FIRST_S)
        return now * random.uniform(0.5, 1.5)  # noqa: S311 - jitter: both of them wait
