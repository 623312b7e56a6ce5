"""Counts what a process does, for its metrics. It begins with nothing at each start, as Prometheus expects of counters."""

import threading
from collections.abc import Iterable, Sequence
from itertools import accumulate

from fedcybgd.shared.contract.metrics import SECONDS, Metric, MetricEntry, number

MOST_SERIES = 200
"""Of one metric. Whatever comes beyond is counted together, under `other`: labels are words of our own, and nobody else makes them many."""
OTHER = "other"
Labels = tuple[str, ...]


class Counters:
    """Safe to use from all threads."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = {metric.name: metric for metric in metrics}
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, float]] = {m.name: {} if m.labels else {(): 0.0} for m in metrics if m.kind == "counter"}
        self._seconds: dict[str, dict[Labels, list[float]]] = {m.name: {} for m in metrics if m.kind == "histogram"}

    def add(self, name: str, value: float = 1.0, labels: Labels = ()) -> None:
        """Count something, `value` times; of a histogram it is a duration that was measured, in seconds."""
        with self._lock:
            if name in self._seconds:
                cells = self._seconds[name].setdefault(self._bounded(name, labels, self._seconds[name]), [0.0] * (len(SECONDS) + 2))
                cells[next((place for place, most in enumerate(SECONDS) if value <= most), len(SECONDS))] += 1
                cells[-1] += value
            else:
                series = self._counts[name]
                key = self._bounded(name, labels, series)
                series[key] = series.get(key, 0.0) + value

    def _bounded(self, name: str, labels: Labels, series: dict[Labels, float] | dict[Labels, list[float]]) -> Labels:
        assert len(labels) == len(self._metrics[name].labels), name
        return labels if labels in series or len(series) < MOST_SERIES else (OTHER,) * len(labels)

    def entries(self) -> Iterable[MetricEntry]:
        """What was counted so far."""
        with self._lock:
            counts = {name: dict(series) for name, series in self._counts.items()}
            seconds = {name: {key: list(cells) for key, cells in series.items()} for name, series in self._seconds.items()}
        for name, series in counts.items():
            for key, value in series.items():
                yield MetricEntry(name, value, self._labels(name, key))
        for name, measured in seconds.items():
            for key, cells in measured.items():
                yield from self._histogram(name, key, cells)

    def _histogram(self, name: str, key: Labels, cells: list[float]) -> Iterable[MetricEntry]:
        labels, so_far = self._labels(name, key), list(accumulate(cells[:-1]))
        for most, count in zip((*SECONDS, float("inf")), so_far, strict=True):
            yield MetricEntry(name, count, {**labels, "le": number(most)}, "_bucket")
        yield MetricEntry(name, cells[-1], labels, "_sum")
        yield MetricEntry(name, so_far[-1], labels, "_count")

    def _labels(self, name: str, key: Labels) -> dict[str, str]:
        return dict(zip(self._metrics[name].labels, key, strict=True))
