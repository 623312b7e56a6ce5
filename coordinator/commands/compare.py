"""`fedcoord compare`: runs beside each other, as a table, a file of curves and a picture."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedcybgd.client.client import Client
from fedcybgd.client.comparison import compared
from fedcybgd.coordinator.commands.completing import RUNS
from fedcybgd.coordinator.commands.new_file import Force, check_free, new_file
from fedcybgd.coordinator.commands.output import say_json
from fedcybgd.coordinator.commands.scatter import Point, scatter
from fedcybgd.shared.contract.comparison import RunScores, doubts
from fedcybgd.shared.contract.score_words import ScoreKind, cells, kind_of, loss, measures
from fedcybgd.shared.contract.views import EvaluationView
from fedcybgd.shared.host.terminal import Terminal

terminal = Terminal()
MEASURES = (
    "loss",
    "loss_error",
    "bits_per_byte",
    "accuracy",
    "accuracy_error",
    "majority",
    "macro_f1",
    "matthews",
    "f1",
    "f1_error",
    "exact_match",
    "exact_match_error",
)
COUNTS = ("labels_never_right", "rows")
COSTS = ("bytes_down", "bytes_up", "tokens", "seconds")


def compare(
    runs: Annotated[list[str], typer.Argument(help="Names or ids of runs.", autocompletion=RUNS)],
    curves: Annotated[
        Path | None,
        typer.Option("--csv", help="Write every score of every run to this file, with what it had cost by then.", dir_okay=False),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--svg", help="Write a picture to this file: quality against bytes, and against memory.", dir_okay=False)
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="The scores as JSON.")] = False,
) -> None:
    """Put runs beside each other: quality, bytes, memory, time; and say what makes the comparison unfair."""
    for wanted in (curves, picture):
        if wanted is not None:
            check_free(wanted, force)
    found = compared(Client().runs, runs)
    if curves is not None:
        with new_file(curves, force) as file:
            csv.writer(file).writerows(rows(found))
    if picture is not None:
        with new_file(picture, force) as file:
            file.write(drawn(found))
    if as_json:
        say_json(dict[str, list[EvaluationView]], {run.called: list(run.scores) for run in found})
        return
    terminal.table(table(found))
    for doubt in doubts(found):
        terminal.say(f"note: {doubt}")


def rows(runs: Sequence[RunScores]) -> Iterator[Sequence[object]]:
    """Of a file of curves: a heading, and a row a score."""
    yield ("run", "method", "after_rounds", *MEASURES, *COUNTS, *COSTS)
    for run in runs:
        for score in run.scores:
            costs = [getattr(score.spent, name) if score.spent is not None else None for name in COSTS]
            yield (run.called, run.method, score.after_rounds, *(getattr(score, name) for name in (*MEASURES, *COUNTS)), *costs)


def table(runs: Sequence[RunScores]) -> Table:
    kind = _kind_of(runs)
    first, second = measures(kind)[:2]
    heading = ("run", "method", first, "base", "head", second, "held-out loss", "MB", "memory", "rounds", "min")
    made = Table(*heading, box=None, padding=(0, 1, 0, 0))
    for run in runs:
        last, spent = run.last, run.last.spent if run.last is not None else None
        quality = cells(last, kind) if last is not None else ["–", "–"]
        base = cells(run.base, kind)[0].partition(" ")[0] if run.base is not None else "–"
        head = cells(run.head, kind)[0].partition(" ")[0] if run.head is not None else "–"
        made.add_row(
            run.called, run.method, quality[0], base, head, quality[1], loss(last) if last is not None else "–",
            f"{(spent.bytes_down + spent.bytes_up) / 1e6:,.0f}" if spent is not None else "–",
            f"{run.peak_memory_bytes / 1e6:,.0f} MB" if run.peak_memory_bytes is not None else "–",
            f"{run.view.rounds_done} of {run.view.rounds_total}", f"{spent.seconds / 60:.1f}" if spent is not None else "–",
        )  # fmt: skip
    return made


def _kind_of(runs: Sequence[RunScores]) -> ScoreKind:
    """Of a classifier as soon as one of them is."""
    return kind_of([score for run in runs for score in run.scores], next((run.kind for run in runs), ""))


def drawn(runs: Sequence[RunScores]) -> str:
    """SVG: the last score of each run against its bytes, and against the memory of its agents."""
    kind = _kind_of(runs)
    by_bytes, by_memory = [], []
    for run in runs:
        value = None if run.last is None else run.last.loss if kind == "text" else run.last.quality
        if value is None or run.last is None:
            continue
        value = value if kind == "text" else 100 * value
        if run.last.spent is not None:
            by_bytes.append(Point(run.called, run.method, (run.last.spent.bytes_down + run.last.spent.bytes_up) / 1e6, value))
        if run.peak_memory_bytes is not None:
            by_memory.append(Point(run.called, run.method, run.peak_memory_bytes / 1e6, value))
    up = "held-out loss, nats" if kind == "text" else f"{measures(kind)[0]}, %"
    return scatter([("MB sent and received", by_bytes), ("peak memory of an agent, MB", by_memory)], up)
