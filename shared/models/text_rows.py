"""Text as tokens: encodes the rows of both tasks of text with a model's tokenizer, keeps them, and makes batches of them."""

import itertools
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, overload

import torch

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.tables import Row
from fedcybgd.shared.models.batches import IGNORED, Batch
from fedcybgd.shared.models.tokens import embedding_rows, load_tokenizer

EXAMPLES_AT_ONCE = 1024
READ_AT_THE_END = {"xlnet": "last"}
"""Classifiers that read the place in a row which `summary_type` names, with its default; decoders look for the padding token themselves."""


@dataclass(frozen=True)
class Features:
    """One encoded example or window: token ids, segment ids where the model has them, and the label or the tokens' labels."""

    ids: list[int]
    labels: list[int]
    segments: list[int] | None = None


class Packed(Sequence[Features]):
    """Features in four bytes a token instead of some forty: millions of rows fit into the memory of a laptop."""

    def __init__(self, features: Iterable[Features]) -> None:
        ids, labels, segments = array("i"), array("i"), array("B")
        ends, label_ends = array("q", [0]), array("q", [0])
        self._segmented = False
        for feature in features:
            ids.extend(feature.ids)
            labels.extend(feature.labels)
            if feature.segments is not None:
                segments.extend(feature.segments)
                self._segmented = True
            ends.append(len(ids))
            label_ends.append(len(labels))
        self._ids, self._labels, self._segments, self._ends, self._label_ends = ids, labels, segments, ends, label_ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        begin, end = self._ends[index], self._ends[index + 1]
        labels = self._labels[self._label_ends[index] : self._label_ends[index + 1]].tolist()
        segments = self._segments[begin:end].tolist() if self._segmented else None
        return Features(self._ids[begin:end].tolist(), labels, segments)

    @property
    def labels(self) -> Sequence[int]:
        """Of all rows, one after another."""
        return self._labels

    def length(self, index: int) -> int:
        """Tokens of one row."""
        return self._ends[index + 1] - self._ends[index]


class TextRows(Packed):
    """Encoded rows of text, and their encoder's way to make batches of them."""

    def __init__(self, features: Iterable[Features], encoder: "TextEncoder") -> None:
        super().__init__(features)
        self._encoder = encoder

    def batch(self, rows: Sequence[int]) -> Batch:
        return self._encoder.collate([self[row] for row in rows])

    def tokens(self, rows: Iterable[int]) -> set[int]:
        """The ids of all tokens that occur in these rows, padding with them."""
        return set().union({self._encoder.pad}, *(self[row].ids for row in rows))

    @property
    def predicted_bytes(self) -> int:
        return self._encoder.predicted_bytes(self)


class TextEncoder(ABC):
    row_bytes = 0
    """Encodes the examples of one task with the tokenizer in `directory` (never with remote code)."""

    reads_a_place: ClassVar[bool] = False
    """whether the model reads one place of a row, and no other"""

    def __init__(self, directory: Path, spec: TaskSpec) -> None:
        self.tokenizer: Any = load_tokenizer(directory)
        self.max_length = self.width = spec.max_length
        self.tokenizer.truncation_side = "right"
        config = json.loads((directory / "config.json").read_text())
        self._rows = embedding_rows(config)
        self.pad = self._first(config.get("pad_token_id"), self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, default=0)
        self.begin = self._first(self.tokenizer.bos_token_id)
        self.end = self._first(self.tokenizer.eos_token_id)
        # A row must not know how long its neighbours are: on the right no causal model sees padding, and positions count from the left.
        # Only what reads the last place of a row needs its text to end there.
        place = READ_AT_THE_END.get(config.get("model_type"))
        self.pads_left = self.reads_a_place and place is not None and config.get("summary_type", place) == "last"

    def __call__(self, examples: Iterable[Row], source: str = "the data") -> list[Features]:
        """All features of `examples`, rows of the file called `source`. Raises `DataError`, which names the row."""
        return list(self.stream(examples, source))

    def stream(self, examples: Iterable[Row], source: str = "the data") -> Iterator[Features]:
        """The same one by one, with few examples in memory at a time."""
        yield from self._features(some(examples), source)

    def encoded(self, examples: Iterable[Row], source: str = "the data", most: int | None = None) -> TextRows:
        """All rows or windows of `examples`, or the first `most`."""
        return TextRows(itertools.islice(self.stream(examples, source), most), self)

    def of_row(self, example: Row, number: int, source: str) -> list[Features]:
        """The features of row `number` by itself: of a text as many windows as it fills."""
        return list(self._features([([number], [example])], source))

    @abstractmethod
    def _features(self, parts: Iterable[tuple[Sequence[int], Sequence[Row]]], source: str) -> Iterator[Features]:
        """Of examples in parts, each with the numbers of its rows."""

    @abstractmethod
    def _labels(self, features: Sequence[Features], places: Sequence[slice], like: torch.Tensor, /) -> torch.Tensor:
        """The labels of a batch whose rows have their tokens at these places of a tensor like this one."""

    def predicted_bytes(self, _features: Iterable[Features], /) -> int:
        """Bytes of the text that is to be predicted, where it is."""
        return 0

    def _first(self, *values: Any, default: int | None = None) -> Any:
        """The first of some ids that the model has an embedding for."""
        for value in values:
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int) and 0 <= value < (self._rows or value + 1):
                return value
        return default

    def _encode(self, texts: list[str], rows: Sequence[int], source: str, field: str, pairs: list[str] | None = None, **how: Any) -> Any:
        try:
            return self.tokenizer(texts, pairs, **how)
        except Exception as error:
            for index, row in enumerate(rows):
                try:
                    self.tokenizer(texts[index], pairs[index] if pairs else None, **how)
                except Exception as its_own:
                    raise DataError(
                        f"{source} row {row}: the tokenizer fails at its {field}: {type(its_own).__name__}", row=row, field=field
                    ) from error
            raise

    def _check(self, ids: Sequence[int], row: int, source: str, field: str) -> None:
        if self._rows is not None and ids and max(ids) >= self._rows:
            raise DataError(
                f"{source} row {row}: its {field} has token {max(ids)} of the tokenizer, and the model's embeddings have {self._rows} rows",
                row=row, field=field, token=max(ids), rows=self._rows,
            )  # fmt: skip

    def collate(self, features: Sequence[Features]) -> Batch:
        """One batch, padded to its longest row where the model does not see it."""
        width = max(len(f.ids) for f in features)
        ids = torch.full((len(features), width), self.pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        segments = torch.full_like(ids, self.tokenizer.pad_token_type_id) if features[0].segments is not None else None
        places: list[slice] = []
        for row, feature in enumerate(features):
            begin = width - len(feature.ids) if self.pads_left else 0
            place = slice(begin, begin + len(feature.ids))
            places.append(place)
            ids[row, place] = torch.tensor(feature.ids)
            mask[row, place] = 1
            if segments is not None and feature.segments is not None:
                segments[row, place] = torch.tensor(feature.segments)
        inputs = {"input_ids": ids, "attention_mask": mask} | ({} if segments is None else {"token_type_ids": segments})
        return Batch(inputs, mask, self._labels(features, places, ids))


class ClassificationEncoder(TextEncoder):
    """A text, or two, with one label."""

    reads_a_place = True

    def _features(self, parts: Iterable[tuple[Sequence[int], Sequence[Row]]], source: str) -> Iterator[Features]:
        for rows, examples in parts:
            yield from self._of(examples, rows, source)

    def _labels(self, features: Sequence[Features], _places: Sequence[slice], _like: torch.Tensor, /) -> torch.Tensor:
        return torch.tensor([f.labels[0] for f in features])

    def _of(self, examples: Sequence[Row], rows: Sequence[int], source: str) -> Iterator[Features]:
        pairs = [e["text_pair"] for e in examples] if "text_pair" in examples[0] else None
        encoded = self._encode([e["text"] for e in examples], rows, source, "text", pairs, truncation=True, max_length=self.max_length)
        segments = encoded.get("token_type_ids")
        for index, (ids, example) in enumerate(zip(encoded["input_ids"], examples, strict=True)):
            self._check(ids, rows[index], source, "text")
            if not ids:
                raise DataError(f"{source} row {rows[index]}: its text gives no token in this tokenizer", row=rows[index], field="text")
            yield Features(ids, [example["label"]], segments[index] if segments else None)


class LanguageEncoder(TextEncoder):
    """Text to go on with: completions of prompts, or windows of one stream of tokens."""

    def _features(self, parts: Iterable[tuple[Sequence[int], Sequence[Row]]], source: str) -> Iterator[Features]:
        windows, plain = _Windows(self.max_length), False
        for rows, examples in parts:
            if "completion" in examples[0]:
                yield from self._completions(examples, rows, source)
                continue
            for ids in self._tokens(examples, rows, source, "text"):
                begin, end = self._around()
                yield from windows.add([*begin, *ids, *([] if begin else end)])
            plain = True
        if plain:
            yield from windows.rest()

    def prompt(self, example: Row, number: int, source: str) -> list[int]:
        """The tokens that row `number` is to be gone on from, as one with a completion begins."""
        (ids,) = self._tokens([example], [number], source, "prompt")
        if not (found := [*self._around()[0], *ids]):
            raise DataError(f"{source} row {number}: its prompt gives no token in this tokenizer", row=number, field="prompt")
        return found

    def _labels(self, features: Sequence[Features], places: Sequence[slice], like: torch.Tensor, /) -> torch.Tensor:
        labels = torch.full_like(like, IGNORED)
        for row, (feature, place) in enumerate(zip(features, places, strict=True)):
            labels[row, place] = torch.tensor(feature.labels)
        return labels

    def _around(self) -> tuple[list[int], list[int]]:
        return [t for t in (self.begin,) if t is not None], [t for t in (self.end,) if t is not None]

    def _tokens(self, examples: Sequence[Row], rows: Sequence[int], source: str, field: str) -> list[list[int]]:
        found: list[list[int]] = self._encode([e[field] for e in examples], rows, source, field, add_special_tokens=False)["input_ids"]
        for row, ids in zip(rows, found, strict=True):
            self._check(ids, row, source, field)
        return found

    def _completions(self, examples: Sequence[Row], rows: Sequence[int], source: str) -> Iterator[Features]:
        prompts = self._tokens(examples, rows, source, "prompt")
        completions = self._tokens(examples, rows, source, "completion")
        for row, prompt, completion in zip(rows, prompts, completions, strict=True):
            begin, end = self._around()
            if not completion:
                raise DataError(f"{source} row {row}: its completion gives no token in this tokenizer", row=row, field="completion")
            answer = (completion + end)[: self.max_length - 1]
            # A row that is too long loses the beginning of its prompt: the loss needs the completion.
            question = (begin + prompt)[-(self.max_length - len(answer)) :]
            yield Features(question + answer, [IGNORED] * len(question) + answer)

    def predicted_bytes(self, features: Iterable[Features], /) -> int:
        """Bytes (UTF-8) of the text that a language model is asked to predict, as the tokenizer writes it; special tokens have none."""
        return sum(self._written(f.ids) - self._written(f.ids[: _asked(f)]) for f in features)

    def _written(self, ids: Sequence[int]) -> int:
        return len(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).encode())


def some(examples: Iterable[Row]) -> Iterator[tuple[list[int], list[Row]]]:
    """Examples in parts, with the numbers of their rows, from 1."""
    numbered = enumerate(examples, 1)
    while some := list(itertools.islice(numbered, EXAMPLES_AT_ONCE)):
        yield [number for number, _ in some], [example for _, example in some]


def _asked(feature: Features) -> int:
    """The first place that is predicted; nothing comes before the first token."""
    return max(1, next((place for place, label in enumerate(feature.labels) if label != IGNORED), len(feature.ids)))


class _Windows:
    """Cuts one stream of tokens into windows."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._stream: list[int] = []
        self._any = False

    def add(self, ids: Sequence[int]) -> Iterator[Features]:
        self._stream += ids
        whole = len(self._stream) // self._length * self._length
        for begin in range(0, whole, self._length):
            yield self._window(self._stream[begin : begin + self._length])
        del self._stream[:whole]

    def rest(self) -> Iterator[Features]:
        # A window of one token has nothing to predict.
        if len(self._stream) > 1:
            yield self._window(self._stream)
        if not self._any:
            raise DataError("the text has fewer than two tokens")

    def _window(self, ids: list[int]) -> Features:
        self._any = True
        return Features(ids, list(ids))
