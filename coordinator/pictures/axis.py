"""Axes of pictures: round numbers at which a line is drawn, and how they are written."""

import math
from collections.abc import Iterable

WANTED = 5
"""About as many lines as an axis gets"""
LARGEST = 1e300
"""What is farther from 0 is not drawn: sums of such numbers are none."""
ALIKE = 1e-9
"""Numbers that differ by less of their size are the same: there are no round ones between them."""


def is_drawn(value: float) -> bool:
    return abs(value) < LARGEST


def spread(values: Iterable[float], from_zero: bool, most: float = math.inf) -> tuple[float, float]:
    """The lowest and the highest value that are shown, never the same; below 0, or above `most`, only what is there."""
    known = [value for value in values if is_drawn(value)]
    least, largest = (min(known), max(known)) if known else (0.0, 1.0)
    low, high = (min(0.0, least) if from_zero else least), largest
    if high - low <= ALIKE * max(abs(low), abs(high), 1 / LARGEST):
        below, above = (0.0, 1.0) if from_zero else (abs(low) * 0.05 or 0.5, abs(high) * 0.05 or 0.5)
    else:
        below = above = 0.0 if from_zero else 0.06 * (high - low)
    return max(low - below, min(least, 0.0)), min(high + above, max(largest, most))


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between the two; `whole`: of what is counted there are no parts."""
    raw = (high - low) / WANTED
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    step = max(step, 1.0) if whole else step
    first, digits = math.ceil(low / step - 1e-9), 1 - math.floor(math.log10(step))
    return [round(number * step, digits) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def labels(at: list[float]) -> list[str]:
    """How ticks are written: as short as can be, and each unlike the others."""
    short = [written(value) for value in at]
    for digits in range(4, 17):
        if len({*short}) == len(at):
            break
        short = [f"{value:.{digits}g}" for value in at]
    return short


def written(value: float) -> str:
    """As short as can be: 12,000 · 0.25 · 1.5e-06."""
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
