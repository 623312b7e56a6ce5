"""How scores are written for people, in the terminal and on model cards alike; `–` stands for what was not measured."""

import math
from collections.abc import Sequence
from typing import Literal

from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.contract.words import CLASSIFICATIONS

ScoreKind = Literal["labels", "answers", "text"]
"""What scores are of: a classifier, a model that finds answers in contexts, or a language model"""
MEASURES: dict[ScoreKind, tuple[str, ...]] = {
    "labels": ("accuracy", "macro-F1", "Matthews"), "answers": ("F1", "exact match"), "text": ("perplexity", "bits a byte"),
}  # fmt: skip


def kind_of(scores: Sequence[Score], task: str = "") -> ScoreKind:
    """What the scores themselves say; where there is none that came to a number, what those of the task will be of."""
    measured = next((score.measure for score in scores if score.measure is not None), None)
    if measured is not None:
        return "labels" if measured == "accuracy" else "answers"
    if any(score.loss is not None for score in scores):
        return "text"
    return "labels" if task in CLASSIFICATIONS else "answers" if task == "extractive-qa" else "text"


def measures(kind: ScoreKind) -> tuple[str, ...]:
    """What `cells` are of."""
    return MEASURES[kind]


def cells(score: Score, kind: ScoreKind) -> list[str]:
    match kind:
        case "labels":
            accuracy = _share(score.accuracy, score.accuracy_error)
            return [accuracy, *("–" if number is None else f"{number:.3f}" for number in (score.macro_f1, score.matthews))]
        case "answers":
            return [_share(score.f1, score.f1_error), _share(score.exact_match, score.exact_match_error)]
        case "text":
            perplexity = "–" if score.loss is None else f"{math.exp(min(score.loss, 700)):,.2f}"
            return [perplexity, "–" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}"]


def loss(score: Score) -> str:
    error = f" ± {score.loss_error:.4f}" if score.loss_error is not None else ""
    return "–" if score.loss is None else f"{score.loss:.4f}{error}"


def _share(value: float | None, error: float | None) -> str:
    spread = f" ± {100 * error:.2f}" if error is not None else ""
    return "–" if value is None else f"{value:.2%}{spread}"
