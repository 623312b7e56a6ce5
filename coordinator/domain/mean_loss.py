"""A mean loss over predictions, and how far off it may be for the choice of the rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class MeanLoss:
    """Sums over rows, or over windows of text, each with a loss (nats, summed over its predictions) and a number of predictions."""

    rows: int = 0
    predictions: int = 0
    total: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0
    _counts: float = 0.0

    def add(self, losses: Sequence[float], predictions: Sequence[int]) -> None:
        for loss, count in zip(losses, predictions, strict=True):
            self.rows += 1
            self.predictions += count
            self.total += loss
            self._squares += loss * loss
            self._products += loss * count
            self._counts += count * count

    @property
    def mean(self) -> float:
        return self.total / max(1, self.predictions)

    @property
    def error(self) -> float | None:
        """The standard error of the mean where rows are drawn one by one; None: of one row nothing can be said.

        Of a ratio of two sums by linearization: √(n/(n-1) · Σ (loss - mean · predictions)²) / Σ predictions (Cochran, 1977, 6.4).
        """
        if self.rows < 2 or not self.predictions:
            return None
        spread = self._squares - 2 * self.mean * self._products + self.mean**2 * self._counts
        return math.sqrt(max(0.0, spread) * self.rows / (self.rows - 1)) / self.predictions
