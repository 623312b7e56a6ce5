"""Axes of pictures: round numbers at which a line is drawn, and how they are written."""

import math
from collections.abc import Iterable

WANTED = 5
"""About as many lines as an axis gets"""


def spread(values: Iterable[float], from_zero: bool) -> tuple[float, float]:
    """The lowest and the highest value that are shown, never the same."""
    known = [value for value in values if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    low = min(0.0, low) if from_zero else low
    if low == high and from_zero:
        return low, high + 1.0  # one score so far, after no round: nothing comes before it
    if low == high:
        return low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    return (low, high) if from_zero else (low - 0.06 * (high - low), high + 0.06 * (high - low))


def ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between the two."""
    raw = (high - low) / WANTED
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def written(value: float) -> str:
    """As short as can be: 12,000 · 0.25 · 1.5e-06."""
    if value and abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
