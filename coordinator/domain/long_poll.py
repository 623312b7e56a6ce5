"""For how long agents are to wait for work in one call: the more there are, the longer, for each answer without work costs as much."""

USUAL_S, LONGEST_S = 25.0, 55.0
"""Proxies cut off what says nothing for a minute."""
EMPTY_ANSWERS_A_S = 100
"""So many a second should be enough, whoever waits: about a tenth of a core."""
HEARD_WITHIN = 0.6
"""Of the time after which an agent counts as silent: it is heard of once in each call."""


def wait_s(waiting: int, silent_after_s: float) -> float:
    """Seconds, where so many wait already."""
    longest = min(LONGEST_S, HEARD_WITHIN * silent_after_s)
    return max(USUAL_S, min(longest, waiting / EMPTY_ANSWERS_A_S))
