"""The gate: whether the held-out loss says that a round did harm, by the measure of what it does from round to round in this run.

Losses go up and down in honest runs, and a gate that refuses every rise makes them worse. So a rise counts only when it is out of all
proportion to those before.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from statistics import median

from fedcybgd.coordinator.domain.band import SIGMA

REMEMBERED = 64
"""Rounds by which the next are judged."""
ENOUGH = 5
"""Changes of the loss from which on a run's own noise is known."""


class GateVerdict(StrEnum):
    FINE = "fine"
    WORSE = "worse"
    """no honest round of this run was like it"""
    GROSS = "gross"
    """the model is damaged"""


def verdicts(losses: Sequence[float]) -> list[GateVerdict]:
    """Of each round, by the losses before the first one and after each. What was out of proportion is no measure for those that follow."""
    return list(_verdicts(tuple(losses)))


@lru_cache(maxsize=256)
def _verdicts(losses: tuple[float, ...]) -> tuple[GateVerdict, ...]:
    """Kept, for pages ask for the same again and again."""
    found: list[GateVerdict] = []
    changes: list[float] = []
    for number in range(1, len(losses)):
        change = losses[number] - losses[number - 1]
        found.append(_verdict(change, losses[number - 1], max(losses[:number]), changes))
        if found[-1] == GateVerdict.FINE:
            changes.append(change)
    return tuple(found)


def verdict(losses: Sequence[float], after: float | None) -> GateVerdict:
    """Of a round after which the loss would be `after` (None: no number), by the losses until then."""
    return verdicts([*losses, math.inf if after is None else after])[-1]


def _verdict(change: float, before: float, highest: float, changes: Sequence[float]) -> GateVerdict:
    """`before` and `highest`: the last loss, and the highest of all before."""
    if not math.isfinite(change):
        return GateVerdict.GROSS
    if len(changes) < ENOUGH:
        limits = 0.5 * highest, highest
    else:
        middle = median(changes)
        noise = SIGMA * median(abs(c - middle) for c in changes)
        most = max(0.0, *changes)
        limits = max(6 * noise, 2 * most, 0.05 * before), max(12 * noise, 4 * most, 0.25 * before)
    if change > limits[1]:
        return GateVerdict.GROSS
    return GateVerdict.WORSE if change > limits[0] else GateVerdict.FINE
