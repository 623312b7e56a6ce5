"""One visit: all that its phases need to know, and what they have in common."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from fedcybgd.agent.messages import TrainRequest
from fedcybgd.agent.training.compute import Compute
from fedcybgd.agent.training.data import Partition
from fedcybgd.agent.training.delta import DeltaTransform, TrainedBlock, unchanged, write_delta
from fedcybgd.agent.training.emulator import Emulator
from fedcybgd.agent.training.loss import label_offsets
from fedcybgd.agent.training.memory import PeakMemory
from fedcybgd.agent.training.order import visit_order
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.training import TrainSettings
from fedcybgd.shared.contract.words import MOST_LABELS
from fedcybgd.shared.models.batches import Batch, plain_forward

Opened = dict[str, dict[str, nn.Parameter]]
"""block → canonical name → what is trained of it"""


@dataclass(frozen=True)
class Visit:
    """What is asked for, what it is done in and with, and who hears of it. Its phases: `open`, savings, train, `write_delta`."""

    request: TrainRequest
    emulator: Emulator
    partition: Partition
    compute: Compute
    memory: PeakMemory
    report: Callable[[Progress], None]
    should_stop: Callable[[], bool]
    began: float = field(default_factory=time.monotonic, init=False)

    @property
    def settings(self) -> TrainSettings:
        return self.request.train

    @property
    def model(self) -> nn.Module:
        return self.emulator.model

    @property
    def blocks(self) -> list[str]:
        """The blocks that are trained."""
        return list(self.settings.trained)

    @cached_property
    def order(self) -> list[list[int]]:
        """The rows of every step."""
        return visit_order(self.partition, self.settings)

    @cached_property
    def label_offsets(self) -> torch.Tensor | None:
        """What the loss adds to the logits, by the labels of the agent's own rows; None: nothing."""
        if self.settings.label_skew == "none" or self.settings.num_labels is None:
            return None
        counts = self.partition.label_counts(self.settings.num_labels, range(len(self.partition.features)))
        return label_offsets(self.settings.label_skew, counts).to(self.compute.device)

    @property
    def told_labels(self) -> list[int] | None:
        """Of each label, on how many rows the visit trains, where the owner lets it be told."""
        labels = self.settings.num_labels
        if not self.request.data.tell_labels or not self.settings.is_classification or labels is None or labels > MOST_LABELS:
            return None
        return self.partition.label_counts(labels, [row for rows in self.order for row in rows])

    @property
    def lowest(self) -> int:
        """The lowest layer that gradients reach: 0 when the embeddings are trained, the number of layers when only what follows them is."""
        if "embeddings" in self.blocks:
            return 0
        trained = [layer for block in self.blocks for layer in self.emulator.layers_in(self.shard(block))]
        corrected = [layer for weight in self.settings.corrected if (layer := self.emulator.layer_of(weight)) is not None]
        return min([*trained, *corrected], default=len(self.emulator.layers))

    def batch(self, rows: list[int]) -> Batch:
        return self.partition.batch(rows).to(self.compute.device)

    def shard(self, block: str) -> Path:
        return next(Path(shard.path) for shard in self.request.shards if shard.block == block)

    def open(self, whole_tables: bool) -> Opened:
        """Make the blocks trainable; of a table that tokens are looked up in only the rows that occur, unless `whole_tables`."""
        tokens = None if whole_tables else self.partition.tokens(self.order)
        opened: Opened = {block: self.emulator.open(self.shard(block), tokens) for block in self.blocks}
        if self.emulator.rows and not self._runs(self.batch(self.order[0][:1])):
            self.emulator.close()
            opened = {block: self.emulator.open(self.shard(block)) for block in self.blocks}
        return opened

    def correct(self) -> dict[str, nn.Parameter]:
        """Give what is corrected its factors, by canonical name; once the blocks are open."""
        corrections = self.settings.corrections
        return self.emulator.correct(corrections, self.settings.seed) if corrections is not None else {}

    def _runs(self, batch: Batch) -> bool:
        """Whether the model does with some rows of its table: it does not if it uses the table for more than to look tokens up."""
        try:
            with torch.no_grad(), self.compute.autocast():
                plain_forward(self.model, batch)
        except (RuntimeError, NotImplementedError):
            return False
        return True

    def write_delta(
        self,
        opened: Opened,
        factors: Mapping[str, torch.Tensor],
        rows: Mapping[str, torch.Tensor],
        transform: DeltaTransform = unchanged,
    ) -> float:
        """Leave the delta where the request says; how much its codec left out of the blocks.

        `factors` are those of the corrections, `rows` those of the tables that were trained in part.
        """
        residuals = self.request.residuals
        trained = {
            block: TrainedBlock(tensors, self.shard(block), rows, Path(residuals[block]) if block in residuals else None)
            for block, tensors in opened.items()
        }
        new_residuals = Path(self.request.new_residuals) if self.request.new_residuals else None
        return write_delta(trained, Path(self.request.delta_path), self.request.delta_codec, new_residuals, transform, factors)
