"""The rows on which a model's layers and its emulators are measured, as batches."""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from fedcybgd.coordinator.domain.jobs.measurements import Calibration
from fedcybgd.coordinator.engine import device
from fedcybgd.coordinator.engine.evaluate import held_out_examples
from fedcybgd.coordinator.engine.shards import as_directory
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.models.batches import Batch, chunks
from fedcybgd.shared.models.row_encoder import row_encoder

TOKENS_AT_ONCE = 1024
"""Padded tokens that go through a model at once on a processor, at the most: their activations should not weigh more than a layer."""


class CalibrationRows:
    """The first rows of a held-out file, encoded; of plain text, the first windows. The same at every call."""

    def __init__(self, store: EngineStore, payload: Calibration) -> None:
        with as_directory(store, payload.files) as folder:
            self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
            encoder = row_encoder(folder, payload)
        with held_out_examples(store, payload.held_out, payload) as given:
            self._rows = encoder.encoded(itertools.islice(given, payload.rows), payload.held_out.name, most=payload.rows)
        self._rows_a_batch = max(1, device.tokens_at_once(TOKENS_AT_ONCE) // encoder.width)

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self) -> Iterator[Batch]:
        """All rows in batches of like lengths: the least padding."""
        return self._batches(sorted(range(len(self)), key=self._rows.length))

    def steps(self, batch_size: int) -> Iterator[Iterator[Batch]]:
        """All rows in the order of the file, `batch_size` of them a step as in training; a step may come in parts that fit into memory."""
        for chosen in chunks(range(len(self)), batch_size):
            yield self._batches(chosen)

    def _batches(self, order: Sequence[int]) -> Iterator[Batch]:
        for chosen in chunks(order, self._rows_a_batch):
            yield self._rows.batch(chosen).to(device.chosen())
