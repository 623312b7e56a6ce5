"""How a benchmark ends: its figures on the screen beside their targets, and in a file under their names."""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path


def arguments(what: str | None) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return parser


def finish(figures: dict[str, float], targets: dict[str, float], file: Path | None) -> None:
    """Print every figure, with its target where it has one (the most that it may be), and write them all to `file`."""
    print()
    for name, value in figures.items():
        target = f"   target: at most {targets[name]:g}{'' if value <= targets[name] else ', MISSED'}" if name in targets else ""
        print(f"{name:22} {value:12.3f}{target}")
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n")


def spread(values: Sequence[float], unit: str = "", digits: int = 1) -> str:
    """Least, median and greatest, so that a noisy machine shows."""
    return f"{min(values):.{digits}f} / {statistics.median(values):.{digits}f} / {max(values):.{digits}f} {unit}".rstrip()


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
