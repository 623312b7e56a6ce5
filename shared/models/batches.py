"""One step's rows as a model takes them, and the loss over them: the same on agents and for held-out evaluation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fedcybgd.shared.contract.words import CLASSIFICATIONS, Task

IGNORED = -100
"""Label of a token that has no part in the loss."""


@dataclass(frozen=True)
class Batch:
    """Tensors of one step. `labels` is (rows,) for classification, (rows, 2) for answers in a context, else (rows, tokens), int64."""

    inputs: Mapping[str, torch.Tensor]
    """what the model is called with, by its own names"""
    mask: torch.Tensor
    """(rows, tokens), int64: 1 where a row has a token of its own, 0 where it is padded"""
    labels: torch.Tensor

    @property
    def num_rows(self) -> int:
        return len(self.mask)

    @property
    def num_tokens(self) -> int:
        return int(self.mask.sum())

    @property
    def device(self) -> torch.device:
        return self.mask.device

    def to(self, device: str) -> "Batch":
        return Batch({name: tensor.to(device) for name, tensor in self.inputs.items()}, self.mask.to(device), self.labels.to(device))


def forward_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits in float32: (rows, labels) for classification, (rows, tokens, 2) for answers in a context, else (rows, tokens, vocabulary)."""
    return plain_forward(model, batch).float()


def plain_forward(model: nn.Module, batch: Batch) -> torch.Tensor:
    """What the model itself returns as logits, in the type that it computed them in."""
    # Decoders would keep keys and values for later tokens; a configuration of another model may have the field all the same.
    decodes = "input_ids" in batch.inputs and hasattr(getattr(model, "config", None), "use_cache")
    output = model(**batch.inputs, use_cache=False) if decodes else model(**batch.inputs)
    # A model that points at answers returns two numbers of each token, apart: it begins there, it ends there.
    logits: torch.Tensor = output.logits if "logits" in output else torch.stack((output.start_logits, output.end_logits), dim=-1)
    return logits


def loss_sum(logits: torch.Tensor, batch: Batch, task: Task) -> tuple[torch.Tensor, int]:
    """The summed cross entropy (nats, float32) and over how many predictions it was summed."""
    return summed_loss(logits, batch, task), num_predictions(batch, task)


def summed_loss(logits: torch.Tensor, batch: Batch, task: Task) -> torch.Tensor:
    """The summed cross entropy (nats, float32)."""
    if task in CLASSIFICATIONS:
        return functional.cross_entropy(logits, batch.labels, reduction="sum")
    if task == "extractive-qa":
        return _span_losses(logits, batch)[0].sum()
    targets = batch.labels[:, 1:].reshape(-1)
    return functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), targets, ignore_index=IGNORED, reduction="sum")


def num_predictions(batch: Batch, task: Task) -> int:
    """Over how many predictions the loss of a batch is summed."""
    if task in CLASSIFICATIONS:
        return len(batch.labels)
    return int(((batch.labels[:, 0] if task == "extractive-qa" else batch.labels[:, 1:]) != IGNORED).sum())


def row_losses(logits: torch.Tensor, batch: Batch, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row the summed cross entropy (nats, float32, shape (rows,)) and over how many predictions it was summed (int64, (rows,))."""
    if task in CLASSIFICATIONS:
        return functional.cross_entropy(logits, batch.labels, reduction="none"), torch.ones_like(batch.labels)
    if task == "extractive-qa":
        return _span_losses(logits, batch)
    targets = batch.labels[:, 1:]
    losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return losses.sum(1), (targets != IGNORED).sum(1)


def _span_losses(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row the mean of the cross entropies of its first and of its last token, over the tokens of the row alone; and 1, or 0 without an answer."""
    among = logits.masked_fill(batch.mask[..., None] == 0, -torch.inf).transpose(1, 2)
    losses = functional.cross_entropy(among.reshape(-1, among.shape[-1]), batch.labels.reshape(-1), ignore_index=IGNORED, reduction="none")
    return losses.view(-1, 2).mean(1), (batch.labels[:, 0] != IGNORED).long()


def chunks(order: Iterable[int], size: int) -> list[list[int]]:
    items = list(order)
    return [items[i : i + size] for i in range(0, len(items), size)]
