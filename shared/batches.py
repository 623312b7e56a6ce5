"""Turns examples into batches of tokens, and tokens into a loss: the same on agents and for held-out evaluation."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional

from shared.errors import DataError
from shared.protocol import Task
from shared.tables import Row

IGNORED = -100
"""Label of a token that has no part in the loss."""


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


class Encoder:
    """Encodes the examples of one task with the tokenizer in `directory` (never with remote code)."""

    def __init__(self, directory: Path, task: Task, max_length: int) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
        self.task = task
        self.max_length = max_length
        self.tokenizer.truncation_side = "right"
        config = json.loads((directory / "config.json").read_text())
        self.pad = _first(config.get("pad_token_id"), self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        self.begin = _first(self.tokenizer.bos_token_id, default=None)
        self.end = _first(self.tokenizer.eos_token_id, default=None)

    def __call__(self, examples: Sequence[Row]) -> list[Features]:
        if self.task == "text-classification":
            return self._classification(examples)
        if "completion" in examples[0]:
            return self._completions(examples)
        return self._windows(examples)

    def _classification(self, examples: Sequence[Row]) -> list[Features]:
        pairs = [e["text_pair"] for e in examples] if "text_pair" in examples[0] else None
        encoded = self.tokenizer([e["text"] for e in examples], pairs, truncation=True, max_length=self.max_length)
        segments = encoded.get("token_type_ids")
        return [
            Features(ids, [example["label"]], segments[index] if segments else None)
            for index, (ids, example) in enumerate(zip(encoded["input_ids"], examples, strict=True))
        ]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _completions(self, examples: Sequence[Row]) -> list[Features]:
        prompts = self._plain([e["prompt"] for e in examples])
        completions = self._plain([e["completion"] for e in examples])
        begin, end = [t for t in (self.begin,) if t is not None], [t for t in (self.end,) if t is not None]
        features = []
        for prompt, completion in zip(prompts, completions, strict=True):
            answer = (completion + end)[: self.max_length - 1]
            # A row that is too long loses the beginning of its prompt: the loss needs the completion.
            question = (begin + prompt)[-(self.max_length - len(answer)) :]
            features.append(Features(question + answer, [IGNORED] * len(question) + answer))
        return features

    def _windows(self, examples: Sequence[Row]) -> list[Features]:
        stream: list[int] = []
        for ids in self._plain([e["text"] for e in examples]):
            stream += (
                ([self.begin] if self.begin is not None else []) + ids + ([self.end] if self.end is not None and self.begin is None else [])
            )
        windows = [stream[i : i + self.max_length] for i in range(0, len(stream), self.max_length)]
        features = [Features(window, list(window)) for window in windows if len(window) > 1]
        if not features:
            raise DataError("the text has fewer than two tokens")
        return features

    def collate(self, features: Sequence[Features]) -> Batch:
        """One batch, padded on the right to its longest row."""
        width = max(len(f.ids) for f in features)
        ids = torch.full((len(features), width), self.pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        segments = torch.zeros_like(ids) if features[0].segments is not None else None
        for row, feature in enumerate(features):
            ids[row, : len(feature.ids)] = torch.tensor(feature.ids)
            mask[row, : len(feature.ids)] = 1
            if segments is not None and feature.segments is not None:
                segments[row, : len(feature.segments)] = torch.tensor(feature.segments)
        if self.task == "text-classification":
            labels = torch.tensor([f.labels[0] for f in features])
        else:
            labels = torch.full_like(ids, IGNORED)
            for row, feature in enumerate(features):
                labels[row, : len(feature.labels)] = torch.tensor(feature.labels)
        return Batch(ids, mask, labels, segments)


def _first(*values: Any, default: Any = 0) -> Any:
    for value in values:
        if value is not None:
            return value[0] if isinstance(value, list) else value
    return default


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


def chunks(order: Iterable[int], size: int) -> list[list[int]]:
    items = list(order)
    return [items[i : i + size] for i in range(0, len(items), size)]
