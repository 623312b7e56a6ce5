"""The agent's own rows, encoded once and kept for all visits of a run."""

from collections.abc import Sequence
from pathlib import Path

import torch

from agent.messages import DataSource
from shared.batches import Batch, Encoder, Features, chunks
from shared.protocol import TrainSettings
from shared.tables import read_examples

WINDOW = 32
"""Batches whose rows are sorted by length together: less padding, and still a shuffled order."""


class Partition:
    """The agent's share of the data, as features of one task."""

    def __init__(self, source: DataSource, files: Path, settings: TrainSettings) -> None:
        self.encoder = Encoder(files, settings.task, settings.max_length)
        examples = read_examples(Path(source.path), settings.task, source.columns, settings.num_labels, settings.label_names, source)
        self.features: list[Features] = self.encoder(examples)
        self.rows = len(examples)

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.encoder.collate([self.features[i] for i in indices])

    def order(self, batch_size: int, generator: torch.Generator) -> list[list[int]]:
        """The batches of one epoch in a shuffled order that depends on `generator` alone."""
        shuffled = torch.randperm(len(self.features), generator=generator).tolist()
        batches: list[list[int]] = []
        for window in chunks(shuffled, batch_size * WINDOW):
            window.sort(key=lambda i: len(self.features[i].ids))
            batches += chunks(window, batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
