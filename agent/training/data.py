"""The agent's own rows, encoded once and kept for all visits of a run."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import torch

from fedcybgd.agent.messages import DataSource
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.tables import Row, examples
from fedcybgd.shared.models.batches import Batch, Features, RowEncoder, chunks

WINDOW = 32
"""Batches whose rows are sorted by length together: less padding, and still a shuffled order."""


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


class Partition:
    """The agent's share of the data, as features of one task."""

    def __init__(self, source: DataSource, files: Path, spec: TaskSpec) -> None:
        self.encoder = RowEncoder(files, spec)
        self.rows = 0
        path = Path(source.path)
        rows = examples(path, spec, source.columns, source)
        self.features = Packed(self.encoder.stream(self._counted(rows), path.name))

    def _counted(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.rows += 1
            yield row

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.encoder.collate([self.features[i] for i in indices])

    def label_counts(self, num_labels: int, rows: Iterable[int]) -> list[int]:
        """How many of these rows have which label, of a classification task."""
        counts = [0] * num_labels
        labels = self.features.labels
        for row in rows:
            counts[labels[row]] += 1
        return counts

    def tokens(self, order: Sequence[Sequence[int]]) -> set[int]:
        """The ids of all tokens that occur in these batches, padding with them."""
        found = {self.encoder.pad}
        for row in {row for batch in order for row in batch}:
            found.update(self.features[row].ids)
        return found

    def order(self, batch_size: int, generator: torch.Generator) -> list[list[int]]:
        """The batches of one epoch in a shuffled order that depends on `generator` alone."""
        shuffled = torch.randperm(len(self.features), generator=generator).tolist()
        batches: list[list[int]] = []
        for window in chunks(shuffled, batch_size * WINDOW):
            window.sort(key=self.features.length)
            batches += chunks(window, batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
