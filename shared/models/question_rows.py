"""Questions and their contexts as tokens: windows of a context, and where in them the answer stands."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.answers import Answer
from fedcybgd.shared.files.tables import Row
from fedcybgd.shared.models.batches import IGNORED
from fedcybgd.shared.models.text_rows import Features, TextEncoder, some
from fedcybgd.shared.models.tokens import TokenizerUnusable

LEAST_SHARE = 4
"""One in so many tokens of a window must be left to the context."""
OVERLAP = 3
"""One in so many tokens of a context in a window stands in the next one, too."""
MOST_WINDOWS = 64
"""Windows of one context."""
NO_ANSWER = [0, 0]
"""Where an answer stands that is none: at the first token."""
NOT_HERE = [IGNORED, IGNORED]


@dataclass(frozen=True)
class ContextWindow:
    """A question with a part of its context, as a model sees it."""

    features: Features
    first: int
    """its place of the first token of the context"""
    offsets: Sequence[tuple[int, int]]
    """of each token of the context in it: where its characters begin in the context, and where they end"""


@dataclass(frozen=True)
class Question:
    """One row: its windows, of which one has the answer in its labels and the others none."""

    windows: Sequence[ContextWindow]
    context: str
    answers: Sequence[Answer]


class QuestionEncoder(TextEncoder):
    """A question and a context with the answer in it. A context that is too long is cut into windows that overlap by a third.

    Trained is, of each row, the window that has most of the first answer, and of several the one in which it stands most amid others.
    """

    def __init__(self, directory: Path, spec: TaskSpec) -> None:
        super().__init__(directory, spec)
        if not getattr(self.tokenizer, "is_fast", False):
            raise TokenizerUnusable(
                "this tokenizer does not say which characters a token is made of, so no answer can be found in it: extractive-qa needs a fast one (tokenizer.json)"
            )

    def questions(self, examples: Iterable[Row], source: str = "the data") -> Iterator[Question]:
        """All windows of each row, one row after another. Raises `DataError`, which names the row."""
        for rows, given in some(examples):
            encoded = self._encode(
                [e["question"] for e in given],
                rows,
                source,
                "question or context",
                [e["context"] for e in given],
                return_offsets_mapping=True,
            )
            for index, (row, example) in enumerate(zip(rows, given, strict=True)):
                yield self._question(encoded, index, {"answers": (), **example}, row, source)

    def _features(self, parts: Iterable[tuple[Sequence[int], Sequence[Row]]], source: str) -> Iterator[Features]:
        for question in self.questions((example for _, examples in parts for example in examples), source):
            yield next(window.features for window in question.windows if window.features.labels != NOT_HERE)

    def _labels(self, features: Sequence[Features], places: Sequence[slice], _like: torch.Tensor, /) -> torch.Tensor:
        begins = [0 if f.labels == NOT_HERE else place.start for f, place in zip(features, places, strict=True)]
        return torch.tensor([f.labels for f in features]) + torch.tensor(begins)[:, None]

    def _question(self, encoded: Any, index: int, example: Row, row: int, source: str) -> Question:
        ids, offsets, parts = encoded["input_ids"][index], encoded["offset_mapping"][index], encoded.sequence_ids(index)
        segments = encoded["token_type_ids"][index] if "token_type_ids" in encoded else None
        self._check(ids, row, source, "question or context")
        of_context = [place for place, part in enumerate(parts) if part == 1]
        if not of_context:
            raise DataError(f"{source} row {row}: its context gives no token in this tokenizer", row=row, field="context")
        first, after = of_context[0], of_context[-1] + 1
        length, room = after - first, self.max_length - (len(ids) - (after - first))
        if room < max(2, self.max_length // LEAST_SHARE):
            raise DataError(
                f"{source} row {row}: of {self.max_length} tokens (task.max_length) its question leaves {max(room, 0)} for the context; "
                f"at least {max(2, self.max_length // LEAST_SHARE)} are needed",
                row=row, field="question",
            )  # fmt: skip
        begins = _begins(length, room)
        if len(begins) > MOST_WINDOWS:
            raise DataError(
                f"{source} row {row}: its context has {length:,} tokens, which are {len(begins)} windows of task.max_length "
                f"{self.max_length}; at most {MOST_WINDOWS}",
                row=row, field="context",
            )  # fmt: skip
        ends = [min(begin + room, length) for begin in begins]
        chosen, labels = 0, [*NO_ANSWER]
        if example["answers"]:
            start, end = _tokens_of(example["answers"][0], offsets[first:after], row, source)
            chosen = _most_of(start, end, begins, ends)
            labels = [first + max(start, begins[chosen]) - begins[chosen], first + min(end, ends[chosen] - 1) - begins[chosen]]
        windows = []
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            here = slice(first + begin, first + end)
            cut = [None if line is None else [*line[:first], *line[here], *line[after:]] for line in (ids, segments)]
            assert cut[0] is not None
            features = Features(cut[0], labels if number == chosen else [*NOT_HERE], cut[1])
            windows.append(ContextWindow(features, first, offsets[here]))
        return Question(windows, example["context"], example["answers"])


def _begins(length: int, room: int) -> list[int]:
    """Where the windows of a context of `length` tokens begin, of which `room` fit into one."""
    if length <= room:
        return [0]
    step = room - room // OVERLAP
    return [*range(0, length - room, step), length - room]


def _tokens_of(answer: Answer, offsets: Sequence[tuple[int, int]], row: int, source: str) -> tuple[int, int]:
    """The first and the last token of the context that has a character of the answer."""
    found = [place for place, (begin, end) in enumerate(offsets) if begin < answer.end and end > answer.start]
    if not found:
        raise DataError(f"{source} row {row}: its answer gives no token in this tokenizer", row=row, field="answers")
    return found[0], found[-1]


def _most_of(start: int, end: int, begins: Sequence[int], ends: Sequence[int]) -> int:
    """The window that has most of the tokens from `start` to `end`; of several, the one with most tokens on the side where it has fewer."""

    def merit(window: int) -> tuple[int, int]:
        held = min(end + 1, ends[window]) - max(start, begins[window])
        return held, min(start - begins[window], ends[window] - 1 - end)

    return max(range(len(begins)), key=merit)
