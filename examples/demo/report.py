"""What the demo says at the end: what was learned, what was moved, what it cost in memory."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figures:
    """Bytes are bytes; accuracies are fractions; losses are nats. `start`, `head_only` and `final` are of the task's metric."""

    task: str
    metric: str
    rows_trained_on: int
    rows_held_out: int
    start: float
    head_only: float | None
    final: float
    reloaded: float
    start_loss: float
    head_only_loss: float | None
    final_loss: float
    reloaded_loss: float
    wall_s: float
    training_s: float
    bytes_down: int
    bytes_up: int
    fedavg_bytes: int
    visit_peak_bytes: int
    visit_peak_bytes_median: int
    full_peak_bytes: int
    web_memory_bytes: int
    exported: str


def show(console: Console, figures: Figures) -> None:
    classification = figures.metric == "accuracy"

    def quality(accuracy: float | None, loss: float | None) -> str:
        if loss is None or (classification and accuracy is None):
            return "–"
        return f"{accuracy:.2%} accuracy, loss {loss:.4f}" if classification else f"{loss:.4f} nats per token"

    table = Table(title="\nHeld-out quality", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row("before", quality(figures.start, figures.start_loss))
    if figures.head_only_loss is not None:
        table.add_row("head alone, as many passes over the rows", quality(figures.head_only, figures.head_only_loss))
    table.add_row("[bold]after, all parameters, block by block", "[bold]" + quality(figures.final, figures.final_loss))
    table.add_row("the exported model, loaded by transformers", quality(figures.reloaded, figures.reloaded_loss))
    console.print(table)

    moved = figures.bytes_down + figures.bytes_up
    table = Table(title="\nWhat it cost", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row("moved", f"{moved / 1e6:,.0f} MB ({figures.bytes_down / 1e6:,.0f} down, {figures.bytes_up / 1e6:,.0f} up)")
    table.add_row(
        "FedAvg of the whole model, equal visits", f"{figures.fedavg_bytes / 1e6:,.0f} MB, {figures.fedavg_bytes / moved:.1f} × as much"
    )
    median, most, full = figures.visit_peak_bytes_median, figures.visit_peak_bytes, figures.full_peak_bytes
    table.add_row("peak training memory of a visit", f"{median / 1e6:,.0f} MB (median), {most / 1e6:,.0f} MB (the largest block)")
    table.add_row(
        "full fine-tuning, measured here", f"{full / 1e6:,.0f} MB, {full / median:.1f} × the median visit, {full / most:.1f} × the largest"
    )
    table.add_row("coordinator's web process", f"{figures.web_memory_bytes / 1e6:,.0f} MB")
    table.add_row("time", f"{figures.wall_s:,.0f} s in all, {figures.training_s:,.0f} s from start to end of the run")
    console.print(table)


def save(path: Path, figures: Figures, more: dict[str, Any]) -> None:
    values = asdict(figures) | {"bytes": figures.bytes_down + figures.bytes_up, "memory": figures.visit_peak_bytes} | more
    path.write_text(json.dumps(values, indent=2) + "\n")
