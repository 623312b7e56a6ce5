"""How scores are written for people, in the terminal and on model cards alike; `–` stands for what was not measured."""

import math
from collections.abc import Sequence

from fedcybgd.shared.contract.measured import Score


def measures(labelled: bool) -> tuple[str, ...]:
    """What `cells` are of: of a classifier, or of a language model."""
    return ("accuracy", "macro-F1", "Matthews") if labelled else ("perplexity", "bits a byte")


def cells(score: Score, labelled: bool) -> list[str]:
    if labelled:
        error = f" ± {100 * score.accuracy_error:.2f}" if score.accuracy_error is not None else ""
        accuracy = "–" if score.accuracy is None else f"{score.accuracy:.2%}{error}"
        return [accuracy, *("–" if number is None else f"{number:.3f}" for number in (score.macro_f1, score.matthews))]
    perplexity = "–" if score.loss is None else f"{math.exp(min(score.loss, 700)):,.2f}"
    return [perplexity, "–" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}"]


def loss(score: Score) -> str:
    error = f" ± {score.loss_error:.4f}" if score.loss_error is not None else ""
    return "–" if score.loss is None else f"{score.loss:.4f}{error}"


def is_labelled(scores: Sequence[Score]) -> bool:
    """Whether they are of a classifier."""
    return any(score.accuracy is not None for score in scores)
