"""Asks a coordinator for what it takes to hold runs against each other."""

from collections.abc import Sequence

from fedcybgd.client.runs import Runs
from fedcybgd.shared.contract.comparison import RunScores
from fedcybgd.shared.contract.views import EvaluationView, RunView


def compared(runs: Runs, names: Sequence[str]) -> list[RunScores]:
    """In the order of `names`; one that is named twice stands once. Raises `Refused`."""
    views = list({view.id: view for view in map(runs.get, names)}.values())
    known = [view.name for view in views]
    return [_one(runs, view, view.name if known.count(view.name) == 1 else view.id) for view in views]


def _one(runs: Runs, view: RunView, called: str) -> RunScores:
    scores = [score for score in runs.evaluations(view.id) if score.loss is not None]
    peaks = [visit.metrics.peak_memory_bytes for visit in runs.assignments(view.id) if visit.metrics is not None]
    return scores_of(view, scores, max(peaks, default=0) or None, called)


def scores_of(view: RunView, scores: Sequence[EvaluationView], peak: int | None, called: str) -> RunScores:
    """What the run file says goes along."""
    spec, evaluate, task = view.spec, view.spec.get("evaluate"), view.spec.get("task")
    digest, seed = evaluate.get("digest") if isinstance(evaluate, dict) else None, spec.get("seed")
    return RunScores(
        view, str(spec.get("method")), str(task), seed if isinstance(seed, int) else 0,
        digest if isinstance(digest, str) else None, scores, peak, called,
        kept=view.conclusion.score if view.conclusion is not None else None, head=view.anchor.score if view.anchor is not None else None,
        kind=str(task.get("kind")) if isinstance(task, dict) else "",
    )  # fmt: skip
