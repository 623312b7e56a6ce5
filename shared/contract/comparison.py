"""Runs beside each other: what each came to, and why the comparison may not be a fair one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.views import EvaluationView, RunSummary
from fedcybgd.shared.contract.words import FINAL

ALIKE = 1.05
"""Runs that trained on up to so many times the tokens of another are held to have trained equally long."""
CHANCE = 1.96
"""Of as many standard errors of their difference two scores are apart by chance in one of twenty cases."""


@dataclass(frozen=True)
class RunScores:
    """One run, with the scores that came to a number, the oldest first; `method` to `held_out` are of its run file."""

    view: RunSummary
    method: str
    task: str
    seed: int
    held_out: str | None
    """digest of its held-out file"""
    scores: Sequence[EvaluationView]
    peak_memory_bytes: int | None
    """the most that a visit needed, as its agent measured it; None: no visit has said"""
    called: str
    """its name or, where another one here has the same, its id"""
    kept: Score | None = None
    """of the model that it ended with, which need not be its last version; None: it has not ended so"""
    head: Score | None = None
    """of the head alone, trained as often; None: nobody has had that done"""
    kind: str = ""
    """of its task"""

    @property
    def base(self) -> EvaluationView | None:
        """Of the model before any training."""
        return self.scores[0] if self.scores and self.scores[0].after_rounds == 0 else None

    @property
    def last(self) -> EvaluationView | None:
        """Of the model that the run ended with; else the newest. What it had cost is all that the run did."""
        return self.scores[-1].ended_with(self.kept) if self.scores else None


def doubts(runs: Sequence[RunScores]) -> Iterator[str]:
    """Sentences, for people: why the scores say less than they seem to."""
    for run in runs:
        if run.view.state not in FINAL:
            yield f"{run.called} is {run.view.state}, after {run.view.rounds_done} of {counted(run.view.rounds_total, 'round')}"
        if run.last is None:
            yield f"{run.called} has no score"
    scored = [run for run in runs if run.last is not None]
    if len({run.view.model for run in runs}) > 1:
        yield "the runs began from different models"
    if len({run.task for run in runs}) > 1:
        yield "the runs have different tasks: their scores cannot be compared"
    elif len({run.held_out for run in scored}) > 1:
        yield "the runs were scored on different held-out files: their scores cannot be compared"
    else:
        yield from _by_chance(scored)
    tokens = {run.called: run.last.spent.tokens for run in scored if run.last is not None and run.last.spent is not None}
    if tokens and max(tokens.values()) > ALIKE * min(tokens.values()):
        most, least = (f(tokens, key=lambda name: tokens[name]) for f in (max, min))
        yield f"{most} trained on {tokens[most]:,} tokens and {least} on {tokens[least]:,}: longer training is no better method"
    by_method = {run.method: [other.seed for other in runs if other.method == run.method] for run in runs}
    if len(by_method) > 1 and any(len(seeds) < 3 for seeds in by_method.values()):
        yield "a method with fewer than three seeds here may owe its place to chance"


def _by_chance(runs: Sequence[RunScores]) -> Iterator[str]:
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
    if score.quality is not None and score.quality_error is not None:
        return score.quality, score.quality_error
    if score.loss is not None and score.loss_error is not None:
        return -score.loss, score.loss_error
    return None
