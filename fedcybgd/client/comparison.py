"""Runs beside each other: what each came to, what it cost, and why the comparison may not be a fair one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedcybgd.client.runs import FINAL, Runs
from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.contract.views import EvaluationView, RunView

ALIKE = 1.05
"""Runs that trained on up to so many times the tokens of another are held to have trained equally long."""
CHANCE = 1.96
"""Of as many standard errors of their difference two scores are apart by chance in one of twenty cases."""


@dataclass(frozen=True)
class Compared:
    """One run, with the scores that came to a number, the oldest first."""

    view: RunView
    scores: Sequence[EvaluationView]
    peak_memory_bytes: int | None
    """the most that a visit needed, as its agent measured it; None: no visit has said"""
    called: str
    """its name or, where another one here has the same, its id"""

    @property
    def method(self) -> str:
        return str(self.view.spec.get("method"))

    @property
    def base(self) -> EvaluationView | None:
        """Of the model before any training."""
        return self.scores[0] if self.scores and self.scores[0].after_rounds == 0 else None

    @property
    def last(self) -> EvaluationView | None:
        """Of the model that the run ended with, which need not be its last version; else the newest. What it had cost is all that the run did."""
        if not self.scores:
            return None
        kept = self.view.conclusion.score if self.view.conclusion is not None else None
        values = {} if kept is None else {name: getattr(kept, name) for name in Score.model_fields if name != "spent"}
        return self.scores[-1].model_copy(update=values)

    @property
    def head(self) -> Score | None:
        """Of the head alone, trained as often; None: nobody has had that done."""
        return self.view.anchor.score if self.view.anchor is not None else None

    @property
    def held_out(self) -> object:
        evaluate = self.view.spec.get("evaluate")
        return evaluate.get("digest") if isinstance(evaluate, dict) else None


def compared(runs: Runs, names: Sequence[str]) -> list[Compared]:
    """In the order of `names`; one that is named twice stands once. Raises `Refused`."""
    views = list({view.id: view for view in map(runs.get, names)}.values())
    known = [view.name for view in views]
    return [_one(runs, view, view.name if known.count(view.name) == 1 else view.id) for view in views]


def _one(runs: Runs, view: RunView, called: str) -> Compared:
    scores = [score for score in runs.evaluations(view.id) if score.loss is not None]
    peaks = [visit.metrics.peak_memory_bytes for visit in runs.assignments(view.id) if visit.metrics is not None]
    return Compared(view, scores, max(peaks, default=0) or None, called)


def doubts(runs: Sequence[Compared]) -> Iterator[str]:
    """Sentences, for people: why the scores say less than they seem to."""
    for run in runs:
        if run.view.state not in FINAL:
            yield f"{run.called} is {run.view.state}, after {run.view.rounds_done} of {run.view.rounds_total} rounds"
        if run.last is None:
            yield f"{run.called} has no score"
    scored = [run for run in runs if run.last is not None]
    if len({run.view.model for run in runs}) > 1:
        yield "the runs began from different models"
    if len({str(run.view.spec.get("task")) for run in runs}) > 1:
        yield "the runs have different tasks: their scores cannot be compared"
    elif len({str(run.held_out) for run in scored}) > 1:
        yield "the runs were scored on different held-out files: their scores cannot be compared"
    else:
        yield from _by_chance(scored)
    tokens = {run.called: run.last.spent.tokens for run in scored if run.last is not None and run.last.spent is not None}
    if tokens and max(tokens.values()) > ALIKE * min(tokens.values()):
        most, least = (f(tokens, key=lambda name: tokens[name]) for f in (max, min))
        yield f"{most} trained on {tokens[most]:,} tokens and {least} on {tokens[least]:,}: longer training is no better method"
    by_method = {run.method: [other.view.spec.get("seed") for other in runs if other.method == run.method] for run in runs}
    if len(by_method) > 1 and any(len(seeds) < 3 for seeds in by_method.values()):
        yield "a method with fewer than three seeds here may owe its place to chance"


def _by_chance(runs: Sequence[Compared]) -> Iterator[str]:
    """The best one is not known to be better than these."""
    values = [(run.called, *found) for run in runs if run.last is not None and (found := _value(run.last)) is not None]
    if len(values) < 2:
        return
    best, most, error = max(values, key=lambda each: each[1])
    for name, value, other in values:
        if name != best and most - value < CHANCE * math.hypot(error, other):
            yield f"{best} and {name} are as far apart as another choice of held-out rows could make them"


def _value(score: EvaluationView) -> tuple[float, float] | None:
    """What is to be as high as can be, with its standard error."""
    if score.accuracy is not None and score.accuracy_error is not None:
        return score.accuracy, score.accuracy_error
    if score.loss is not None and score.loss_error is not None:
        return -score.loss, score.loss_error
    return None
