"""Label skew: agents whose rows have other labels than the others'. What is told of it, how it is noticed, and how a head is put together."""

import math
from collections.abc import Iterable, Sequence

from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.shared.contract.training import TrainMetrics, TrainSettings
from fedcybgd.shared.contract.words import MOST_LABELS

Counts = Sequence[int]
"""Of each label, how many rows"""
UNLIKE = 0.15
"""Divergence from which on labels are called unlike: agents with a random share of all rows stay under 0.1, shares drawn from a Dirichlet
distribution of parameter 1 come to 0.1 to 0.3, of 0.1 to 0.4 and more."""
RISE, NEVER = 0.05, 0.1
"""The held-out loss rose: by that part of the lowest before. Labels are forgotten: that part of them is never right."""


class LabelCountsInvalid(Invalid):
    """What an agent tells of its labels cannot be."""

    code = "label_counts_invalid"


def check_counts(train: TrainSettings, metrics: TrainMetrics) -> None:
    """Raises `LabelCountsInvalid` where counts are not of the run's labels, or not of as many rows as were, or can have been, trained on."""
    counts = metrics.label_counts
    if counts is None:
        return
    if not train.is_classification or train.num_labels is None or len(counts) != train.num_labels:
        raise LabelCountsInvalid(f"label_counts: {len(counts)} labels are counted, the run has {train.num_labels or 'none'}")
    if sum(counts) != metrics.rows:
        raise LabelCountsInvalid(f"label_counts: they count {sum(counts)} rows, the visit trained on {metrics.rows}")
    if metrics.rows > (most := (train.steps or metrics.steps) * train.batch_size):
        raise LabelCountsInvalid(f"label_counts: they count {metrics.rows} rows, the steps of the visit are on {most} at the most")


def by_label(spec: RunFile) -> bool:
    """Whether each label's row of a head weighs by itself. Of more labels than agents may count all rows weigh alike."""
    return spec.head_average == "by_label" and (spec.task.num_labels or 0) <= MOST_LABELS


def row_weights(counts: Sequence[Sequence[float] | None], total: float) -> list[list[float]] | None:
    """Of each delta, the weight of each label's row in the head: its agent's share of the rows of that label, `total` times.

    A label of which nobody has a row has the mean. None where somebody does not tell, or there is nobody to share with.
    """
    known = [row for row in counts if row is not None]
    if len(known) < max(2, len(counts)):
        return None
    sums = [sum(column) for column in zip(*known, strict=True)]
    return [[total * (n / all_of_it if all_of_it else 1 / len(known)) for n, all_of_it in zip(row, sums, strict=True)] for row in known]


def moved_rows(moved: Sequence[Sequence[int] | None], weights: Sequence[float], labels: int) -> list[list[float] | None]:
    """What stands for counts where agents do not tell them: of each delta its weight, for the labels whose rows it moves. A visit moves no others
    than those of its rows, unless its loss is the plain one. None of a delta of which nobody knows."""
    return [
        None if one is None else [weight * (label in known) for label in range(labels)]
        for one, known, weight in zip(moved, (frozenset(one or ()) for one in moved), weights, strict=True)
    ]


def divergence(counts: Sequence[Counts]) -> float:
    """How unlike the labels of agents are: 0 where all have the same shares, 1 where no two have a label in common.

    The Jensen-Shannon divergence of their distributions, weighed by their rows, over its largest value (the entropy of these weights). What few rows come
    to by chance is taken off: (agents - 1)(labels - 1) / 2n nats.
    """
    sizes = [sum(row) for row in counts]
    of_labels: list[int] = [sum(column) for column in zip(*counts, strict=True)]
    total = sum(sizes)
    most = _entropy(sizes)
    if not most:
        return 0.0
    apart = _entropy(of_labels) - sum(size / total * _entropy(row) for size, row in zip(sizes, counts, strict=True) if size)
    by_chance = (sum(n > 0 for n in sizes) - 1) * (sum(n > 0 for n in of_labels) - 1) / (2 * total)
    return max(0.0, apart - by_chance) / most


def _entropy(counts: Iterable[int]) -> float:
    """In nats, of what is distributed as these counts."""
    found = [n for n in counts if n]
    if not found:
        return 0.0
    return math.log(sum(found)) - math.fsum(n * math.log(n) for n in found) / sum(found)


def forgets(losses: Sequence[float], held_out: int, never_right: int) -> bool:
    """Whether visits undo what others taught: the held-out loss rose on the way, and there are labels of which no held-out row is right."""
    lowest, rose = math.inf, False
    for loss in losses:
        rose = rose or loss > (1 + RISE) * lowest
        lowest = min(lowest, loss)
    return rose and never_right >= max(1, NEVER * held_out)


def remedy(spec: RunFile) -> str:
    """What a run file can do about it."""
    found = []
    if spec.label_skew == "none":
        found.append("train.label_skew: smoothed")
    if spec.schedule.head_start == "fresh":
        found.append("schedule.head_start: class_means, if the model's head is fresh")
    if method_of(spec).is_shared(spec) and spec.head_average != "by_label":
        found.append("schedule.head_average: by_label")
    if not found:
        return "the run file allows for it already; what is left are more cycles, or rows of more labels at each agent"
    return f"for a run after this one: {'; '.join(found)} (docs/run-file.md, Label skew)"
