"""How long the coordinator did not run, as two clocks tell together."""

from dataclasses import dataclass
from datetime import datetime, timedelta

UNNOTICED = timedelta(seconds=2)
"""Delays of a busy machine, and what a clock is corrected by, are no absence."""


@dataclass(frozen=True)
class Moment:
    """One point in time on two clocks."""

    wall: datetime
    """as people have it: it can be set"""
    elapsed: float
    """seconds that nobody sets, and that go on while the machine sleeps"""


def lost_between(before: Moment, now: Moment, expected: timedelta) -> timedelta | None:
    """What must be added to times noted until `before`, so that they are as far from now as if the coordinator had always run.

    It was away when longer than `expected` went by (stopped, asleep, or its database out of reach), and the clock was set when both
    clocks disagree; set back, what was lost is negative. None: neither happened.
    """
    ran = timedelta(seconds=now.elapsed - before.elapsed)
    passed = now.wall - before.wall
    if ran <= expected + UNNOTICED and abs(passed - ran) <= UNNOTICED:
        return None
    return passed - min(ran, expected)
