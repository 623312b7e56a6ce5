"""Failures count by visit and agent: who is passed over for a visit, and who is asked for nothing for a while."""

from collections.abc import Mapping
from datetime import timedelta

PASSED_OVER_AFTER = 2
"""Failures of one agent at one visit, after which others are asked"""
STRIKES = 2
"""Visits at which an agent was passed over, one after another, until it goes into quarantine"""
FIRST, LONGEST = timedelta(minutes=1), timedelta(hours=6)
"""How long the first quarantine lasts; each that follows without a success in between lasts twice as long"""


def passed_over(failed: Mapping[str, int]) -> frozenset[str]:
    """Ids of the agents that have failed too often at a visit, by the number of their failures."""
    return frozenset(agent for agent, times in failed.items() if times >= PASSED_OVER_AFTER)


def is_strike(times: int, on_probation: bool, gave_up: bool) -> bool:
    """Whether the failure that makes so many at a visit counts against the agent as a whole: once a visit, where it is passed over.

    Of an agent on probation, which comes from quarantine, the first does. `gave_up`: it takes work and gives it back without a failure,
    which ends no run however often it happens, so that it counts again and again.
    """
    return times == (1 if on_probation else PASSED_OVER_AFTER) or (gave_up and times % PASSED_OVER_AFTER == 0)


def lasts(before: int) -> timedelta:
    """How long a quarantine is, after so many before it without a success in between."""
    return min(LONGEST, FIRST * (1 << min(before, 20)))
