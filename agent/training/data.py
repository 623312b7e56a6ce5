"""The agent's own rows, encoded once and kept for all visits of a run."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from fedcybgd.agent.messages import DataSource
from fedcybgd.agent.training.errors import DiskFilled
from fedcybgd.shared.contract.sizes import in_units
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.images import bytes_on_disk
from fedcybgd.shared.files.tables import Row, examples
from fedcybgd.shared.models.batches import Batch, chunks
from fedcybgd.shared.models.row_encoder import EncodedRows, row_encoder

WINDOW = 32
"""Batches whose rows are sorted by length together: less padding, and still a shuffled order."""


class Partition:
    """The agent's share of the data, as features of one task."""

    def __init__(self, source: DataSource, files: Path, spec: TaskSpec, disk_bytes: int | None = None) -> None:
        """`disk_bytes`: what encoded rows may take of the disk; None: whatever they do. Raises `DiskFilled` before they take more."""
        encoder = row_encoder(files, spec)
        self._row_bytes, self._disk_bytes = encoder.row_bytes, disk_bytes
        self.width = encoder.width
        """tokens of the longest row that there may be"""
        self.rows = 0
        path = Path(source.path)
        rows = examples(path, spec, source.columns, source, images=None if source.images is None else Path(source.images))
        self.features: EncodedRows = encoder.encoded(self._counted(rows), path.name)

    def _counted(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.rows += 1
            if self._disk_bytes is not None and (taken := bytes_on_disk(self.rows, self._row_bytes)) > self._disk_bytes:
                raise DiskFilled(
                    f"{in_units(taken)} of pixels of {self.rows} images and more; limits.disk_gb leaves them {in_units(self._disk_bytes)}; raise it"
                )
            yield row

    @property
    def disk_left(self) -> int | None:
        """What `disk_bytes` leaves beside the encoded rows; None: nothing bounds it."""
        return None if self._disk_bytes is None else max(0, self._disk_bytes - bytes_on_disk(self.rows, self._row_bytes))

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.features.batch(indices)

    def label_counts(self, num_labels: int, rows: Iterable[int]) -> list[int]:
        """How many of these rows have which label, of a classification task."""
        counts = [0] * num_labels
        labels = self.features.labels
        for row in rows:
            counts[labels[row]] += 1
        return counts

    def tokens(self, order: Sequence[Sequence[int]]) -> set[int] | None:
        """The ids of all tokens that occur in these batches, padding with them; None where rows have none."""
        return self.features.tokens({row for batch in order for row in batch})

    def order(self, batch_size: int, generator: torch.Generator) -> list[list[int]]:
        """The batches of one epoch in a shuffled order that depends on `generator` alone."""
        shuffled = torch.randperm(len(self.features), generator=generator).tolist()
        batches: list[list[int]] = []
        for window in chunks(shuffled, batch_size * WINDOW):
            window.sort(key=self.features.length)
            batches += chunks(window, batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
