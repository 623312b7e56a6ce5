"""Draws the scores of runs with matplotlib: quality or loss, against rounds, bytes, tokens or time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fedcybgd.client.trackers.base import package
from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.contract.run_views import SeriesView
from fedcybgd.shared.contract.views import EvaluationView, RunView

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXTRA = "plots"
Against = Literal["rounds", "bytes", "tokens", "time"]
Of = Literal["quality", "loss"]
LABELS = {"rounds": "rounds", "bytes": "MB sent and received", "tokens": "tokens trained on", "time": "minutes"}


def draw(runs: Sequence[tuple[RunView, SeriesView]], y: Of, x: Against, axes: "Axes | None") -> "Axes":
    """See `Runs.plot`."""
    if axes is None:
        _, axes = package("matplotlib.pyplot", EXTRA).subplots(layout="constrained")
    assert axes is not None
    names = [view.name for view, _ in runs]
    scored = [(view, [e for e in series.evaluations if e.loss is not None]) for view, series in runs]
    by_quality = y == "quality" and all(e.quality is not None for _, found in scored for e in found)
    for number, (view, found) in enumerate(scored):
        called, colour = view.name if names.count(view.name) == 1 else f"{view.name} {view.id}", f"C{number % 10}"
        points = [(_place(e, x), *_value(e, by_quality)) for e in found]
        known = [(place, value, error) for place, value, error in points if place is not None]
        axes.plot([p for p, _, _ in known], [v for _, v, _ in known], marker=".", color=colour, label=called)
        if any(error for _, _, error in known):
            low, high = [v - e for _, v, e in known], [v + e for _, v, e in known]
            axes.fill_between([p for p, _, _ in known], low, high, color=colour, alpha=0.15, linewidth=0)
        if view.anchor is not None and view.anchor.score is not None and view.anchor.score.loss is not None:
            value, _ = _value(view.anchor.score, by_quality)
            axes.axhline(value, color=colour, linestyle="--", linewidth=1, label=f"{called}: its head alone")
    axes.set_xlabel(LABELS[x])
    axes.set_ylabel(_called([e for _, found in scored for e in found], by_quality))
    if x == "rounds":
        axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    if runs:
        axes.legend()
    return axes


def _place(e: EvaluationView, x: Against) -> float | None:
    """None: what it had cost is not known."""
    if x == "rounds":
        return e.after_rounds
    if e.spent is None:
        return None
    costs: dict[Any, float] = {
        "bytes": (e.spent.bytes_down + e.spent.bytes_up) / 1e6,
        "tokens": e.spent.tokens,
        "time": e.spent.seconds / 60,
    }
    return costs[x]


def _value(score: Score, by_quality: bool) -> tuple[float, float]:
    """With its standard error, or 0."""
    if by_quality:
        return 100 * (score.quality or 0.0), 100 * (score.quality_error or 0.0)
    return score.loss or 0.0, score.loss_error or 0.0


def _called(scores: Sequence[Score], by_quality: bool) -> str:
    measure = next((score.measure for score in scores if score.measure is not None), None)
    return f"held-out {measure}, %" if by_quality and measure is not None else "held-out loss, nats"
