"""The one place that knows how rows become batches, by task."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.files.tables import Row
from fedcybgd.shared.models.batches import Batch
from fedcybgd.shared.models.image_rows import ImageEncoder
from fedcybgd.shared.models.question_rows import QuestionEncoder
from fedcybgd.shared.models.text_rows import ClassificationEncoder, LanguageEncoder


class EncodedRows(Protocol):
    """Rows, or windows of text, as a model sees them; by index."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Sequence[int]:
        """Of a classification, one for each row."""

    @property
    def predicted_bytes(self) -> int:
        """Bytes (UTF-8) of the text that is to be predicted; 0 where none is."""

    def length(self, row: int, /) -> int:
        """Tokens of one row."""

    def batch(self, rows: Sequence[int]) -> Batch: ...

    def tokens(self, rows: Iterable[int], /) -> set[int] | None:
        """The ids of all tokens that occur in these rows, padding with them; None where rows have none."""


class RowEncoder(Protocol):
    """Encodes the examples of one task with what a model's directory has: configuration, and tokenizer or preprocessing."""

    @property
    def width(self) -> int:
        """Tokens of the longest row that there may be."""

    @property
    def row_bytes(self) -> int:
        """Bytes of an encoded row that may lie on the disk; 0: none do."""

    @property
    def pad(self) -> int | None:
        """The token that rows are padded with; None where none is."""

    def encoded(self, examples: Iterable[Row], source: str = "the data", /, most: int | None = None) -> EncodedRows:
        """All rows or windows of `examples`, which are of the file called `source`, or the first `most`. Raises `DataError`, with the row."""


ENCODERS: dict[Task, Callable[[Path, TaskSpec], RowEncoder]] = {
    "text-classification": ClassificationEncoder,
    "causal-lm": LanguageEncoder,
    "image-classification": ImageEncoder,
    "extractive-qa": QuestionEncoder,
}


def row_encoder(directory: Path, spec: TaskSpec) -> RowEncoder:
    """Raises `TokenizerUnusable`, or `ModelUnknown` for images."""
    return ENCODERS[spec.task](directory, spec)
