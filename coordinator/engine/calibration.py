"""The rows on which a model's layers and its emulators are measured, as batches."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from fedcybgd.coordinator.domain.jobs.measurements import Calibration
from fedcybgd.coordinator.engine.evaluate import held_out_examples
from fedcybgd.coordinator.engine.shards import as_directory
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.models.batches import Batch, Features, RowEncoder, chunks

TOKENS_AT_ONCE = 1024
"""Padded tokens that go through a model at once, at the most: their activations should not weigh more than a layer."""


class CalibrationRows:
    """The first rows of a held-out file, encoded; of plain text, the first windows. The same at every call."""

    def __init__(self, store: EngineStore, payload: Calibration) -> None:
        examples = held_out_examples(store, payload.held_out, payload)[: payload.rows]
        with as_directory(store, payload.files) as folder:
            self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
            self._encoder = RowEncoder(folder, payload)
        self._features: list[Features] = self._encoder(examples, payload.held_out.name)[: payload.rows]
        self._rows_a_batch = max(1, TOKENS_AT_ONCE // payload.max_length)

    def __len__(self) -> int:
        return len(self._features)

    def batches(self) -> Iterator[Batch]:
        """All rows in batches of like lengths: the least padding."""
        return self._collated(sorted(self._features, key=lambda f: len(f.ids)))

    def steps(self, batch_size: int) -> Iterator[Iterator[Batch]]:
        """All rows in the order of the file, `batch_size` of them a step as in training; a step may come in parts that fit into memory."""
        for chosen in chunks(range(len(self._features)), batch_size):
            yield self._collated([self._features[i] for i in chosen])

    def _collated(self, features: Sequence[Features]) -> Iterator[Batch]:
        for chosen in chunks(range(len(features)), self._rows_a_batch):
            yield self._encoder.collate([features[i] for i in chosen])
