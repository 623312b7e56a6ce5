"""A delta's direction in 256 numbers: two sketches say whether deltas point the same way, long after the deltas are gone."""

import base64
import math
from array import array
from collections.abc import Sequence
from operator import mul

WIDTH = 256
HIGHEST = 127


def packed(values: Sequence[float]) -> str:
    """`WIDTH` sums, of which the direction counts and nothing else; empty where there is none."""
    largest = max((abs(value) for value in values), default=0.0)
    if not 0 < largest < math.inf or any(map(math.isnan, values)):  # of NaN and a number the larger one is whichever came first
        return ""
    return base64.b64encode(array("b", [round(HIGHEST * value / largest) for value in values]).tobytes()).decode()


def unpacked(sketch: str) -> list[float]:
    """Of length 1, or zeros where there is no direction."""
    if not sketch:
        return [0.0] * WIDTH
    values = array("b", base64.b64decode(sketch))
    length = math.sqrt(sum(map(mul, values, values))) or 1.0
    return [value / length for value in values]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """0 where either has no direction."""
    lengths = math.sqrt(sum(map(mul, one, one)) * sum(map(mul, other, other)))
    return sum(map(mul, one, other)) / lengths if lengths else 0.0
