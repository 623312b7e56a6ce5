"""What the arms of a question gave: mean and standard deviation over the seeds, on the screen and by name."""

import statistics
from collections.abc import Mapping, Sequence

Figures = dict[str, float]


def mean(runs: Sequence[Figures], name: str) -> float:
    return statistics.mean(run[name] for run in runs)


def sd(runs: Sequence[Figures], name: str) -> float:
    return statistics.stdev(run[name] for run in runs) if len(runs) > 1 else 0.0


def summary(found: Mapping[str, Sequence[Figures]]) -> Figures:
    """Of every arm and figure `arm/figure`, the mean over its seeds, and `arm/figure_sd`."""
    figures: Figures = {}
    for arm, runs in found.items():
        for name in runs[0]:
            figures |= {f"{arm}/{name}": mean(runs, name), f"{arm}/{name}_sd": sd(runs, name)}
    return figures


def show(found: Mapping[str, Sequence[Figures]], columns: Mapping[str, int], title: str = "") -> None:
    """Print a line for each arm, a column for each figure with so many digits; an arm that lacks a figure shows none."""
    width = max(len(title), *map(len, found)) + 2
    cells = {name: max(len(name), 2 * digits + 12) for name, digits in columns.items()}
    print(f"{title:{width}}" + " ".join(f"{name:>{cells[name]}}" for name in columns) + "  seeds")
    for arm, runs in found.items():
        shown = [f"{mean(runs, n):.{d}f} ± {sd(runs, n):.{d}f}" if n in runs[0] else "–" for n, d in columns.items()]
        print(f"{arm:{width}}" + " ".join(f"{cell:>{cells[n]}}" for n, cell in zip(columns, shown, strict=True)) + f"  {len(runs):5}")
    print()
