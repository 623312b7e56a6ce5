"""How a classifier fares label by label: what accuracy alone hides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedcybgd.shared.contract.measured import LabelScore


@dataclass(frozen=True)
class LabelTally:
    """Of each label: rows that have it, rows that were taken for it, and rows of both."""

    rows: list[int]
    guessed: list[int]
    right: list[int]

    @classmethod
    def empty(cls, labels: int) -> "LabelTally":
        return cls([0] * labels, [0] * labels, [0] * labels)

    def add(self, labels: Sequence[int], guesses: Sequence[int]) -> None:
        for label, guess in zip(labels, guesses, strict=True):
            self.rows[label] += 1
            self.guessed[guess] += 1
            self.right[label] += label == guess

    def counted(self) -> list[list[int]]:
        """Of each label that a row has or was taken for: the label, rows, guesses, and those that were right. There are twice as many as rows at the most."""
        columns = zip(self.rows, self.guessed, self.right, strict=True)
        return [[label, *counts] for label, counts in enumerate(columns) if any(counts)]

    @property
    def accuracy(self) -> float:
        return sum(self.right) / max(1, sum(self.rows))

    @property
    def held_out(self) -> int:
        """Labels that some row has."""
        return sum(rows > 0 for rows in self.rows)

    @property
    def never_right(self) -> int:
        """Labels that some row has, and of which no row was right."""
        return sum(rows > 0 and not right for rows, right in zip(self.rows, self.right, strict=True))

    @property
    def macro_f1(self) -> float:
        """The mean, over the labels that some row has, of 2 · right / (rows + guessed)."""
        found = [2 * right / (rows + guessed) for rows, guessed, right in zip(self.rows, self.guessed, self.right, strict=True) if rows]
        return sum(found) / max(1, len(found))

    @property
    def majority(self) -> float:
        """The accuracy of always saying the label that most rows have."""
        return max(self.rows, default=0) / max(1, sum(self.rows))

    @property
    def matthews(self) -> float:
        """Matthews' correlation of guesses and labels, for any number of labels: Gorodkin's R_K (2004). 0 where either never varies."""
        rows, right = sum(self.rows), sum(self.right)
        together = right * rows - sum(have * said for have, said in zip(self.rows, self.guessed, strict=True))
        of_labels, of_guesses = (rows**2 - sum(count**2 for count in counts) for counts in (self.rows, self.guessed))
        return together / math.sqrt(of_labels * of_guesses) if of_labels and of_guesses else 0.0

    @property
    def accuracy_error(self) -> float:
        """The standard error of the accuracy, as of rows drawn one by one: √(p (1 - p) / rows)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / max(1, sum(self.rows)))


def label_scores(counted: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> list[LabelScore]:
    """Of what `LabelTally.counted` gave, by label."""
    return [
        LabelScore(
            label=label, name=names[label] if names is not None and label < len(names) else None, rows=rows, guessed=guessed, right=right,
            recall=right / rows if rows else None, precision=right / guessed if guessed else None,
            f1=2 * right / (rows + guessed) if rows else None,
        )
        for label, rows, guessed, right in counted
    ]  # fmt: skip


def worst_first(scores: Sequence[LabelScore]) -> list[LabelScore]:
    """By recall, of equals the one with more rows first; last those that no held-out row has."""
    return sorted(scores, key=lambda one: (one.recall is None, one.recall or 0.0, -one.rows, one.label))
