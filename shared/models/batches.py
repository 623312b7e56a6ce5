"""Turns examples into batches of tokens, and tokens into a loss: the same on agents and for held-out evaluation."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.files.tables import Row
from fedcybgd.shared.models.tokens import embedding_rows, load_tokenizer

IGNORED = -100
"""Label of a token that has no part in the loss."""
EXAMPLES_AT_ONCE = 1024
READ_AT_THE_END = {"xlnet": "last"}
"""Classifiers that read the place in a row which `summary_type` names, with its default; decoders look for the padding token themselves."""


@dataclass(frozen=True)
class Features:
    """One encoded example or window: token ids, segment ids where the model has them, and the label or the tokens' labels."""

    ids: list[int]
    labels: list[int]
    segments: list[int] | None = None


@dataclass(frozen=True)
class Batch:
    """Tensors of one step. All of shape (rows, tokens), int64; `labels` is (rows,) for classification."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    token_type_ids: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.attention_mask.sum())

    def inputs(self) -> dict[str, torch.Tensor]:
        result = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.token_type_ids is not None:
            result["token_type_ids"] = self.token_type_ids
        return result

    def to(self, device: str) -> "Batch":
        segments = self.token_type_ids.to(device) if self.token_type_ids is not None else None
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device), segments)


class RowEncoder:
    """Encodes the examples of one task with the tokenizer in `directory` (never with remote code)."""

    def __init__(self, directory: Path, spec: TaskSpec) -> None:
        self.tokenizer: Any = load_tokenizer(directory)
        self.task = spec.task
        self.max_length = spec.max_length
        self.tokenizer.truncation_side = "right"
        config = json.loads((directory / "config.json").read_text())
        self._rows = embedding_rows(config)
        self.pad = self._first(config.get("pad_token_id"), self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, default=0)
        self.begin = self._first(self.tokenizer.bos_token_id)
        self.end = self._first(self.tokenizer.eos_token_id)
        # A row must not know how long its neighbours are: on the right no causal model sees padding, and positions count from the left.
        # Only what reads the last place of a row needs its text to end there.
        place = READ_AT_THE_END.get(config.get("model_type"))
        self.pads_left = spec.task == "text-classification" and place is not None and config.get("summary_type", place) == "last"

    def __call__(self, examples: Iterable[Row], source: str = "the data") -> list[Features]:
        """All features of `examples`, rows of the file called `source`. Raises `DataError`, which names the row."""
        return list(self.stream(examples, source))

    def stream(self, examples: Iterable[Row], source: str = "the data") -> Iterator[Features]:
        """The same one by one, with few examples in memory at a time."""
        numbered = enumerate(examples, 1)
        windows, plain = _Windows(self.max_length), False
        while some := list(itertools.islice(numbered, EXAMPLES_AT_ONCE)):
            rows, chosen = [number for number, _ in some], [example for _, example in some]
            if self.task == "text-classification":
                yield from self._classification(chosen, rows, source)
            elif "completion" in chosen[0]:
                yield from self._completions(chosen, rows, source)
            else:
                for ids in self._tokens(chosen, rows, source, "text"):
                    begin, end = self._around()
                    yield from windows.add([*begin, *ids, *([] if begin else end)])
                plain = True
        if plain:
            yield from windows.rest()

    def _first(self, *values: Any, default: int | None = None) -> Any:
        """The first of some ids that the model has an embedding for."""
        for value in values:
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int) and 0 <= value < (self._rows or value + 1):
                return value
        return default

    def _around(self) -> tuple[list[int], list[int]]:
        return [t for t in (self.begin,) if t is not None], [t for t in (self.end,) if t is not None]

    def _classification(self, examples: Sequence[Row], rows: Sequence[int], source: str) -> Iterator[Features]:
        pairs = [e["text_pair"] for e in examples] if "text_pair" in examples[0] else None
        encoded = self._encode([e["text"] for e in examples], rows, source, "text", pairs, truncation=True, max_length=self.max_length)
        segments = encoded.get("token_type_ids")
        for index, (ids, example) in enumerate(zip(encoded["input_ids"], examples, strict=True)):
            self._check(ids, rows[index], source, "text")
            if not ids:
                raise DataError(f"{source} row {rows[index]}: its text gives no token in this tokenizer", row=rows[index], field="text")
            yield Features(ids, [example["label"]], segments[index] if segments else None)

    def _tokens(self, examples: Sequence[Row], rows: Sequence[int], source: str, field: str) -> list[list[int]]:
        found: list[list[int]] = self._encode([e[field] for e in examples], rows, source, field, add_special_tokens=False)["input_ids"]
        for row, ids in zip(rows, found, strict=True):
            self._check(ids, row, source, field)
        return found

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

    def predicted_bytes(self, features: Iterable[Features]) -> int:
        """Bytes (UTF-8) of the text that a language model is asked to predict, as the tokenizer writes it; special tokens have none."""
        return sum(self._written(f.ids) - self._written(f.ids[: _asked(f)]) for f in features)

    def _written(self, ids: Sequence[int]) -> int:
        return len(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).encode())

    def collate(self, features: Sequence[Features]) -> Batch:
        """One batch, padded to its longest row where the model does not see it."""
        width = max(len(f.ids) for f in features)
        ids = torch.full((len(features), width), self.pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        segments = torch.full_like(ids, self.tokenizer.pad_token_type_id) if features[0].segments is not None else None
        labels = torch.full_like(ids, IGNORED)
        for row, feature in enumerate(features):
            begin = width - len(feature.ids) if self.pads_left else 0
            place = slice(begin, begin + len(feature.ids))
            ids[row, place] = torch.tensor(feature.ids)
            mask[row, place] = 1
            if segments is not None and feature.segments is not None:
                segments[row, place] = torch.tensor(feature.segments)
            if self.task == "causal-lm":
                labels[row, place] = torch.tensor(feature.labels)
        if self.task == "text-classification":
            labels = torch.tensor([f.labels[0] for f in features])
        return Batch(ids, mask, labels, segments)


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


def forward_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits in float32: (rows, labels) for classification, (rows, tokens, vocabulary) for language modelling."""
    return plain_forward(model, batch).float()


def plain_forward(model: nn.Module, batch: Batch) -> torch.Tensor:
    """What the model itself returns as logits, in the type that it computed them in."""
    logits: torch.Tensor = model(**batch.inputs(), use_cache=False).logits if _is_decoder(model) else model(**batch.inputs()).logits
    return logits


def _is_decoder(model: nn.Module) -> bool:
    return hasattr(getattr(model, "config", None), "use_cache")


def loss_sum(logits: torch.Tensor, batch: Batch, task: Task) -> tuple[torch.Tensor, int]:
    """The summed cross entropy (nats, float32) and over how many predictions it was summed."""
    if task == "text-classification":
        return functional.cross_entropy(logits, batch.labels, reduction="sum"), len(batch.labels)
    targets = batch.labels[:, 1:].reshape(-1)
    total = functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), targets, ignore_index=IGNORED, reduction="sum")
    return total, int((targets != IGNORED).sum())


def row_losses(logits: torch.Tensor, batch: Batch, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row the summed cross entropy (nats, float32, shape (rows,)) and over how many predictions it was summed (int64, (rows,))."""
    if task == "text-classification":
        return functional.cross_entropy(logits, batch.labels, reduction="none"), torch.ones_like(batch.labels)
    targets = batch.labels[:, 1:]
    losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return losses.sum(1), (targets != IGNORED).sum(1)


def chunks(order: Iterable[int], size: int) -> list[list[int]]:
    items = list(order)
    return [items[i : i + size] for i in range(0, len(items), size)]
