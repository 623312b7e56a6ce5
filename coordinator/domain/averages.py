"""Averages of versions: which versions of a block are part of one, and how often each counts."""

import math
from collections.abc import Sequence

from fedcybgd.coordinator.domain.history import VersionFacts, rounds_of
from fedcybgd.coordinator.domain.jobs.candidates import AverageTerm


def averaged_rounds(part: float, rounds: int) -> int:
    """How many of the last of so many rounds are averaged over: that part of them, rounded up."""
    return min(rounds, max(1, math.ceil(part * rounds - 1e-9)))


def stood(line: Sequence[VersionFacts], after_rounds: int, last: int) -> list[AverageTerm]:
    """The versions with which the last of so many rounds ended, the oldest first. `line`: the lineage of the present version, youngest first."""
    found: list[AverageTerm] = []
    until = after_rounds
    for facts in line:
        since = rounds_of(facts)
        rounds = until - max(since, after_rounds - last + 1) + 1
        if rounds > 0:
            found.append(AverageTerm(version=facts.version, rounds=rounds))
        until = min(until, since - 1)
    return found[::-1]
