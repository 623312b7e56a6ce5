"""How the weighted deltas of a block become its change."""

from typing import Literal

Average = Literal["mean", "trimmed_mean", "median", "geometric_median"]
"""What run files call it."""
HeadAverage = Literal["damped", "mean", "by_label"]
"""Of a head that several agents of a round trained along. damped: `damping` times the mean, as of every other block; mean: undamped;

by_label: undamped, each label's row weighed by how many rows of that label each agent trained on, where all of them tell; where one does not, the
mean of the deltas that move it.
"""
Aggregate = Literal["sum", "trimmed_mean", "median", "geometric_median"]
"""sum: each times its weight, added up one after another in the order of seats. The others take the sum of the weights times

trimmed_mean: of each number the mean of what is left when a quarter of the deltas at either end, at least one, is left out;
median: of each number the middle one, or the mean of the two in the middle;
geometric_median: the point whose distances from the deltas add up to least, each distance times its delta's weight.
"""
ENOUGH = 3
"""Of two deltas nobody can say which is out of line."""


def chosen(usual: Aggregate, average: Average, deltas: int) -> Aggregate:
    """The aggregate for a block of so many deltas."""
    return usual if average == "mean" or deltas < ENOUGH else average


def trimmed(deltas: int) -> int:
    """How many deltas are left out at either end."""
    return max(1, deltas // 4)
