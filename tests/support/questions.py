"""Rows of questions, and files of them."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.models import WORDS

KEY = "pin"


def question(asked: str, context: str, first: int | None, words: int = 1) -> dict[str, Any]:
    """A row whose answer has so many words of the context, from the `first` one; None: it has no answer."""
    if first is None:
        return {"question": asked, "context": context, "answers": {"text": [], "answer_start": []}}
    parts = context.split(" ")
    before = len(" ".join([*parts[:first], ""]))
    return {"question": asked, "context": context, "answers": {"text": [" ".join(parts[first : first + words])], "answer_start": [before]}}


def easy(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that a small model learns: the answer is the one word of its kind in the context."""
    draw, others = random.Random(seed), [word for word in WORDS if word != KEY]
    found = []
    for _ in range(number):
        words = draw.sample(others, 7)
        place = draw.randrange(8)
        found.append(question("why", " ".join([*words[:place], KEY, *words[place:]]), place))
    return found


def questions(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
