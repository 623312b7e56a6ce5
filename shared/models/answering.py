"""What a model says to questions: the best part of the context over all of its windows."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedcybgd.shared.files.tables import Row
from fedcybgd.shared.models.batches import chunks, forward_logits, row_losses
from fedcybgd.shared.models.question_rows import Question, QuestionEncoder

MOST_TOKENS = 30
"""Tokens of an answer that is looked for."""
AT_ONCE = 256
"""Questions that are sorted by length together, and held in memory."""


@dataclass
class SaidAnswer:
    """To one question."""

    question: Question
    text: str = ""
    score: float = -torch.inf
    """the logits of its beginning and its end"""
    nothing: float = torch.inf
    """those of there being no answer; as of SQuAD 2, of the window that is surest of one"""
    loss: float = 0.0
    """nats, of the window that has the first answer"""

    @property
    def margin(self) -> float:
        """By how much the text is surer than that there is no answer; below 0 the model would rather say nothing."""
        return self.score - self.nothing


def answers(
    model: nn.Module, encoder: QuestionEncoder, rows: Iterable[Row], source: str, tokens_a_batch: int, device: str = "cpu"
) -> Iterator[SaidAnswer]:
    """To one row after another, by a model on `device`. Raises `DataError`, with the row."""
    questions = encoder.questions(rows, source)
    while some := [SaidAnswer(question) for question in itertools.islice(questions, AT_ONCE)]:
        windows = [(said, window) for said in some for window in said.question.windows]
        order = sorted(range(len(windows)), key=lambda place: len(windows[place][1].features.ids))
        for chosen in chunks(order, max(1, tokens_a_batch // encoder.width)):
            batch = encoder.collate([windows[place][1].features for place in chosen]).to(device)
            with torch.inference_mode():
                logits = forward_logits(model, batch)
                losses, asked = row_losses(logits, batch, "extractive-qa")
            for row, place, loss, here in zip(logits.cpu(), chosen, losses.tolist(), asked.tolist(), strict=True):
                said, window = windows[place]
                score, first, last = best_span(row[window.first : window.first + len(window.offsets)])
                if score > said.score:
                    said.score, said.text = score, said.question.context[window.offsets[first][0] : window.offsets[last][1]]
                said.nothing = min(said.nothing, float(row[0].sum()))
                said.loss = loss if here else said.loss
        yield from some


def best_span(logits: Tensor) -> tuple[float, int, int]:
    """Of the tokens of a context, `logits` (tokens, 2), those between which the sum of beginning and end is highest, with that sum.

    The end is not before the beginning, and the span has at most `MOST_TOKENS`.
    """
    begins, ends = logits.unbind(-1)
    ends = torch.cat([ends, ends.new_full((MOST_TOKENS - 1,), -torch.inf)])
    sums = begins[:, None] + ends.unfold(0, MOST_TOKENS, 1)
    first, more = divmod(int(sums.argmax()), MOST_TOKENS)
    return float(sums[first, more]), first, first + more
