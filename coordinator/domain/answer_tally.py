"""How a model fares that finds answers in contexts: exact match and F1, as the SQuAD data sets define them."""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)


def plain_words(text: str) -> list[str]:
    """The words of an answer in lower case, without punctuation (ASCII) and articles (Rajpurkar et al., EMNLP 2016, 6.1)."""
    lower = "".join(c for c in text.lower() if c not in PUNCTUATION)
    return ARTICLES.sub(" ", lower).split()


def exact_match(said: str, answers: Sequence[str]) -> float:
    """1 where it is one of the answers, word by word, else 0. No answers: the right one is the empty text."""
    return float(plain_words(said) in [plain_words(answer) for answer in answers or [""]])


def f1(said: str, answers: Sequence[str]) -> float:
    """The harmonic mean of precision and recall over words, against the answer for which it is highest; 0 or 1 where either has no word."""
    return max(_overlap(plain_words(said), plain_words(answer)) for answer in answers or [""])


def _overlap(said: Sequence[str], answer: Sequence[str]) -> float:
    if not said or not answer:
        return float(said == answer)
    return 2 * (Counter(said) & Counter(answer)).total() / (len(said) + len(answer))


@dataclass(frozen=True)
class AnswerCandidate:
    """What a model says to one question: the best part of the context, and whether it would rather say that there is no answer."""

    text: str
    answers: Sequence[str]
    rather_nothing: bool


class AnswerTally:
    """Scores by question. That there is no answer is taken for one only where some question has none."""

    def __init__(self) -> None:
        self._given: list[tuple[float, float]] = []
        self._or_nothing: list[tuple[float, float]] = []
        self._some_have_none = False

    def add(self, said: AnswerCandidate) -> None:
        words = ["" if said.rather_nothing else said.text, said.text]
        for scores, text in zip((self._or_nothing, self._given), words, strict=True):
            scores.append((exact_match(text, said.answers), f1(text, said.answers)))
        self._some_have_none |= not said.answers

    @property
    def exact_match(self) -> float:
        return fmean(self._column(0))

    @property
    def exact_match_error(self) -> float | None:
        return self._error(0)

    @property
    def f1(self) -> float:
        return fmean(self._column(1))

    @property
    def f1_error(self) -> float | None:
        return self._error(1)

    def _column(self, which: int) -> list[float]:
        return [scores[which] for scores in (self._or_nothing if self._some_have_none else self._given)]

    def _error(self, which: int) -> float | None:
        """The standard error of the mean, as of questions drawn one by one; None: of one question nothing can be said."""
        column = self._column(which)
        return stdev(column) / math.sqrt(len(column)) if len(column) > 1 else None
