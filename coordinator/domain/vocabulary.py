"""How much of a vocabulary a visit meets. Only these rows of the embeddings change; only they are held where the table is just looked up in."""

import math

from fedcybgd.coordinator.domain.run_file import RunFile

TYPES = 10
"""Different tokens among n are about TYPES × √n (Heaps' law); the rows of others in the embeddings do not change."""
MOST_TYPES = 0.6
"""Share of a vocabulary that a visit ever touches, at the most: 0.58 in stories260K, which knows 512 tokens."""


def types_met(tokens: float, vocabulary: int) -> float:
    """Different tokens among so many, of a vocabulary: an estimate."""
    return min(MOST_TYPES * vocabulary, TYPES * math.sqrt(tokens))


def rows_held(spec: RunFile, vocabulary: int, rows: int | None) -> int:
    """Rows of a table that a visit trains, if it trains only those of its tokens.

    For an agent of whom it is known how many rows it has: about as many as text of that length has different tokens. Else as many as
    there can be at the most: a different one for each token of the visit; all of them where the visit is as long as the agent has rows.
    Of the longest visits, where those of the first cycle have a length of their own.
    """
    return max(_rows_held(spec.in_cycle(cycle), vocabulary, rows) for cycle in (0, 1))


def _rows_held(spec: RunFile, vocabulary: int, rows: int | None) -> int:
    train = spec.train
    if rows is None:
        return min(vocabulary, train.steps * train.batch_size * spec.task.max_length) if train.steps is not None else vocabulary
    used = train.steps * train.batch_size if train.steps is not None else math.ceil((train.epochs or 1.0) * rows)
    return max(1, round(types_met(min(used, rows) * spec.task.max_length, vocabulary)))
