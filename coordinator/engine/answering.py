"""What a model says to questions: the best part of the context over all of its windows."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fedcybgd.coordinator.domain.answer_tally import AnswerCandidate, AnswerTally
from fedcybgd.coordinator.domain.mean_loss import MeanLoss
from fedcybgd.shared.files.tables import Row
from fedcybgd.shared.models.batches import chunks, forward_logits, row_losses
from fedcybgd.shared.models.question_rows import Question, QuestionEncoder

MOST_TOKENS = 30
"""Tokens of an answer that is looked for."""
AT_ONCE = 256
"""Questions that are sorted by length together, and held in memory."""


def answer(
    model: nn.Module, encoder: QuestionEncoder, rows: Iterable[Row], source: str, tokens_a_batch: int
) -> tuple[MeanLoss, AnswerTally]:
    """The loss over the windows that have an answer, one a row, and how good what the model says is. Raises `DataError`."""
    measured, tally = MeanLoss(), AnswerTally()
    questions = encoder.questions(rows, source)
    with torch.inference_mode():
        while some := list(itertools.islice(questions, AT_ONCE)):
            windows = [(number, window) for number, question in enumerate(some) for window in question.windows]
            found: list[list[tuple[float, str, float]]] = [[] for _ in some]
            order = sorted(range(len(windows)), key=lambda place: len(windows[place][1].features.ids))
            for chosen in chunks(order, max(1, tokens_a_batch // encoder.width)):
                batch = encoder.collate([windows[place][1].features for place in chosen])
                logits = forward_logits(model, batch)
                losses, asked = row_losses(logits, batch, "extractive-qa")
                here = asked.bool()
                measured.add(losses[here].tolist(), asked[here].tolist())
                for row, place in zip(logits, chosen, strict=True):
                    number, window = windows[place]
                    score, first, last = best_span(row[window.first : window.first + len(window.offsets)])
                    text = some[number].context[window.offsets[first][0] : window.offsets[last][1]]
                    found[number].append((score, text, float(row[0].sum())))
            for said in _said(some, found):
                tally.add(said)
    return measured, tally


def best_span(logits: Tensor) -> tuple[float, int, int]:
    """Of the tokens of a context, `logits` (tokens, 2), those between which the sum of beginning and end is highest, with that sum.

    The end is not before the beginning, and the span has at most `MOST_TOKENS`.
    """
    begins, ends = logits.unbind(-1)
    ends = torch.cat([ends, ends.new_full((MOST_TOKENS - 1,), -torch.inf)])
    sums = begins[:, None] + ends.unfold(0, MOST_TOKENS, 1)
    first, more = divmod(int(sums.argmax()), MOST_TOKENS)
    return float(sums[first, more]), first, first + more


def _said(questions: Sequence[Question], found: Sequence[Sequence[tuple[float, str, float]]]) -> Iterator[AnswerCandidate]:
    for question, spans in zip(questions, found, strict=True):
        score, text, _ = max(spans, key=lambda span: span[0])
        # As of SQuAD 2: no answer is what the window says that is surest of one.
        nothing = min(span[2] for span in spans)
        yield AnswerCandidate(text, [answer.text for answer in question.answers], rather_nothing=nothing > score)
