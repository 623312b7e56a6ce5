"""Metrics: the numbers that a program writes for whoever watches it, in the text format of Prometheus (version 0.0.4)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Upper bounds of what is counted of a duration, in seconds"""


@dataclass(frozen=True)
class Metric:
    """A line of the table of a program's metrics."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


class MetricEntry(NamedTuple):
    """One number of a metric. `suffix` is what follows the name: `_bucket`, `_sum` and `_count` of a histogram."""

    metric: str
    value: float
    labels: Mapping[str, str] = {}
    suffix: str = ""


def text(metrics: Sequence[Metric], entries: Iterable[MetricEntry]) -> str:
    """All that have a number, in the order of the table."""
    found: dict[str, list[MetricEntry]] = {}
    for entry in entries:
        found.setdefault(entry.metric, []).append(entry)
    lines = []
    for metric in metrics:
        if metric.name in found:
            lines += [f"# HELP {metric.name} {_help(metric.meaning)}", f"# TYPE {metric.name} {metric.kind}"]
            lines += [_line(entry) for entry in found[metric.name]]
    return "\n".join([*lines, ""])


def _line(entry: MetricEntry) -> str:
    labels = ",".join(f'{name}="{_quoted(value)}"' for name, value in entry.labels.items())
    return f"{entry.metric}{entry.suffix}{f'{{{labels}}}' if labels else ''} {number(entry.value)}"


def number(value: float) -> str:
    """As Prometheus reads it: whole numbers without a point."""
    if value != value or value in (float("inf"), float("-inf")):
        return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[str(value)]
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _help(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(value: str) -> str:
    return _help(value).replace('"', r"\"")
