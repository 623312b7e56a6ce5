"""The curves of runs: loss and score against rounds, bytes or time, with what they are to be held against."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from fedcybgd.coordinator.pictures.curves import Curve, Level, curves, legend
from fedcybgd.shared.contract.run_views import SeriesView
from fedcybgd.shared.contract.score_words import kind_of, measures
from fedcybgd.shared.contract.views import AnchorView, EvaluationView

X = Literal["rounds", "bytes", "minutes"]
LABELS: dict[X, str] = {"rounds": "rounds", "bytes": "MB sent and received", "minutes": "minutes"}
Named = tuple[str, SeriesView]


@dataclass(frozen=True)
class Pictures:
    score: Markup | None
    """accuracy of a classifier, or F1 of answers; None: of a language model, whose loss says it"""
    measure: str
    """which of them"""
    loss: Markup
    calibration: Markup | None
    """the loss on the calibration rows from round to round, where it is measured"""
    legend: Markup | None
    """of several runs"""


def pictures(of: Sequence[Named], x: X, anchor: AnchorView | None = None) -> Pictures:
    kind = kind_of([e for _, series in of for e in series.evaluations])
    measure = "accuracy" if kind == "text" else measures(kind)[0]
    losses = [_curve(name, s, x, lambda e: e.loss) for name, s in of]
    shares = [_curve(name, s, x, lambda e: None if e.quality is None else 100 * e.quality) for name, s in of]
    rounds = [Curve(name, [(each.after_rounds, each.loss) for each in s.losses]) for name, s in of]
    label, (first, *others) = LABELS[x], of
    of_share, of_loss = ([], []) if others else (_levels(first[1], quality, anchor) for quality in (True, False))
    return Pictures(
        score=None if kind == "text" else curves(f"Held-out {measure}", shares, label, f"{measure}, %", of_share, x == "rounds", 100.0),
        measure=measure,
        loss=curves("Held-out loss", losses, label, "loss, nats", of_loss, x == "rounds"),
        calibration=curves("Loss on the calibration rows", rounds, "rounds", "loss, nats", counted=True)
        if any(c.points for c in rounds)
        else None,
        legend=legend(losses) if others else None,
    )


def _curve(name: str, series: SeriesView, x: X, value: Callable[[EvaluationView], float | None]) -> Curve:
    """Where a score failed is a gap; one that was skipped, or is still made, is none at all."""
    found = [(_x(e, x), math.nan if e.failed is not None and e.failed.code != "skipped" else value(e)) for e in series.evaluations]
    return Curve(name, [(at, number) for at, number in found if at is not None and number is not None])


def _x(score: EvaluationView, x: X) -> float | None:
    if x == "rounds":
        return score.after_rounds
    if score.spent is None:
        return None
    return (score.spent.bytes_down + score.spent.bytes_up) / 1e6 if x == "bytes" else score.spent.seconds / 60


def _levels(series: SeriesView, quality: bool, anchor: AnchorView | None) -> list[Level]:
    """The model before training, its head alone, and what says the commonest label always."""
    first = series.evaluations[0] if series.evaluations and series.evaluations[0].after_rounds == 0 else None
    head = anchor.score if anchor is not None else None
    named = [("before training", first), ("head alone", head)]
    if not quality:
        return [Level(name, score.loss) for name, score in named if score is not None and score.loss is not None]
    found = [Level(name, 100 * score.quality) for name, score in named if score is not None and score.quality is not None]
    majority = first.majority if first is not None else None
    return [*found, *([Level("commonest label always", 100 * majority)] if majority is not None else [])]
