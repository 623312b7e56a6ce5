"""How long a step of block training takes, against a full fine-tuning step of the same model, and int4 against exact frozen blocks.

    python -m benchmarks.step_time [--json FILE] [--repeats N] [--precision bfloat16]

A Llama-shaped model with random weights on a CPU, one thread. All blocks are trained in turn, in visits as an agent does them
(default settings, no row used twice, so nothing is cached), interleaved with full steps and repeated. Process CPU time is the
figure, as it holds on a loaded machine; wall time is printed beside it.
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.random_llama import FullFineTuning, Shape, request, write
from benchmarks.report import arguments, finish

SHAPE = Shape(layers=6, hidden=512, inner=1408, vocabulary=8000, tokens=128, rows=16)
STEPS = 4
"""Steps of a visit; the first one, which allocates, does not count."""
TARGETS = {"block_to_full_cpu": 0.75, "int4_to_exact_cpu": 1.3}


def clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def between(marks: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """CPU and wall seconds of every step but the first, from what the clocks showed before each step."""
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks[1:])]


def visit(visitor: Any, folder: Path, shape: Shape, block: str, codec: str, precision: str) -> list[tuple[float, float]]:
    marks: list[tuple[float, float]] = []

    def before_a_step() -> bool:
        marks.append(clocks())
        return False

    visitor.visit(request(folder, shape, [block], codec, steps=STEPS, precision=precision), lambda _: None, before_a_step)
    return between(marks)


def full_steps(full: FullFineTuning) -> list[tuple[float, float]]:
    marks = []
    for indices in [list(range(i * 4, i * 4 + 4)) for i in range(STEPS)]:
        marks.append(clocks())
        full.step(indices)
    return between(marks)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--codecs", nargs="+", default=["exact", "int8", "int4"], help="codecs of the frozen blocks")
    options = parser.parse_args()

    import torch

    from fedcybgd.agent.training.visitor import Visitor

    torch.set_num_threads(1)
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name) / "model"
        write(folder, SHAPE, sorted({"exact", *options.codecs}))
        full = FullFineTuning(folder, SHAPE, STEPS, torch.bfloat16 if options.precision == "bfloat16" else torch.float32)
        visitor = Visitor("cpu")
        for _ in range(options.repeats):
            times.setdefault(("full", ""), []).extend(full_steps(full))
            for block in SHAPE.blocks:
                for codec in options.codecs:
                    steps = visit(visitor, folder, SHAPE, block, codec, options.precision)
                    times.setdefault((codec, block), []).extend(steps)

    def mean(kind: str, clock: int) -> float:
        """Over the blocks, of the medians of their steps."""
        return statistics.mean(statistics.median(t[clock] for t in steps) for (side, _), steps in times.items() if side == kind)

    print(f"{'':12}{'CPU ms a step':>16}{'wall ms':>10}")
    for kind, block in times:
        values = times[kind, block]
        print(
            f"{kind:6} {block:12}{1000 * statistics.median(t[0] for t in values):9.0f}{1000 * statistics.median(t[1] for t in values):10.0f}"
        )
    figures: dict[str, float] = {"full_cpu_ms": 1000 * mean("full", 0), "full_wall_ms": 1000 * mean("full", 1)}
    for codec in options.codecs:
        figures |= {f"{codec}_cpu_ms": 1000 * mean(codec, 0), f"{codec}_wall_ms": 1000 * mean(codec, 1)}
    if "exact" in options.codecs:
        figures["block_to_full_cpu"] = mean("exact", 0) / mean("full", 0)
        figures["block_to_full_wall"] = mean("exact", 1) / mean("full", 1)
        for codec in set(options.codecs) - {"exact"}:
            figures[f"{codec}_to_exact_cpu"] = mean(codec, 0) / mean("exact", 0)
            figures[f"{codec}_to_exact_wall"] = mean(codec, 1) / mean("exact", 1)
            figures[f"{codec}_to_full_cpu"] = mean(codec, 0) / mean("full", 0)
    finish(figures, TARGETS, options.json)


if __name__ == "__main__":
    main()
