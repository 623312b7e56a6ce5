"""Reads the answers of a question's row, and holds them against its context."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedcybgd.shared.contract.errors import DataError

MOST_ANSWERS = 100
"""Answers of one row."""
FORM = '{"text": [...], "answer_start": [...]}'


@dataclass(frozen=True)
class Answer:
    """A part of a context, and the place of its first character there."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def stored_answers(value: object, context: str, where: str, facts: Mapping[str, Any]) -> tuple[Answer, ...]:
    """The answers in `context`, none where the question has none: as the SQuAD data sets hold them, or a list of {text, answer_start}.

    In a CSV file they are JSON. Raises `DataError`, which names the row and quotes nothing of it.
    """
    texts, starts = _columns(value, where, facts)
    if len(texts) != len(starts):
        raise DataError(f"{where}: answers has {len(texts)} of `text` and {len(starts)} of `answer_start`; each answer needs both", **facts)
    if len(texts) > MOST_ANSWERS:
        raise DataError(f"{where} has {len(texts)} answers; at most {MOST_ANSWERS}", **facts)
    return tuple(
        _answer(text, start, context, f"{where}: answer {n}", facts) for n, (text, start) in enumerate(zip(texts, starts, strict=True), 1)
    )


def _columns(value: object, where: str, facts: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    if isinstance(value, (str, bytes)):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: answers is text, and no JSON; it must be {FORM}", **facts) from error
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        value = {name: [one[name] for one in value if name in one] for name in ("text", "answer_start")}
    if not isinstance(value, dict) or not all(isinstance(value.get(name), list) for name in ("text", "answer_start")):
        raise DataError(f"{where}: answers must be {FORM}, or a list of such pairs; both are empty where there is no answer", **facts)
    return value["text"], value["answer_start"]


def _answer(text: object, start: object, context: str, where: str, facts: Mapping[str, Any]) -> Answer:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where} must be text that is not empty; a question without an answer has empty lists", **facts)
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise DataError(
            f"{where}: its answer_start must be the place of its first character in the context, a whole number from 0", **facts
        )
    if not context.startswith(text, start):
        raise DataError(
            f"{where}: the context reads otherwise at its answer_start, {start}; characters are counted from 0, not bytes", **facts
        )
    return Answer(text, start)
