"""What the system costs beyond the training itself: the same visits through it and in one bare process.

    python -m benchmarks.overhead [--json FILE] [--repeats N]

Both sides are warm (processes started, torch and the model's code imported) and train with one thread; on the system's side
the CPU time of all its processes counts, and the first visits still download the model and read the rows. All must end in
the same blocks, to the bit.

The system runs twice, in turns: `seen`, as it is, while Prometheus reads its metrics every 15 seconds and somebody follows its events; and `unseen`,
without counters, events and their lines in the log, and with nobody who asks. What the other processes take is told as a share of what the trainers of
the same system take, for these do the same work on both sides while the speed of a machine goes up and down by more than the difference.
"""

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks import banking77
from benchmarks.bare import BareRequest, BareResult
from benchmarks.report import arguments, finish, spread
from benchmarks.system import ENVIRONMENT, System
from benchmarks.turnaround import turnarounds
from fedcybgd import FedError
from fedcybgd.shared.contract.views import AssignmentView

TARGETS = {"wall_ratio": 1.15, "cpu_ratio": 1.10, "seen_percent": 1, "turnaround_ms_median": 150, "start_s": 2}
SCRAPE_S = 15.0
"""as Prometheus has it in docs/operating.md"""
TASK = {"kind": "text-classification", "labels": banking77.LABELS, "max_length": 64}
AGENTS = [f"agent-{i}" for i in range(4)]
STARTERS = ["starter-0", "starter-1", "starter-2"]
"""Each of them is asked once, and has never seen a model before."""

RUN: dict[str, Any] = {
    "name": "overhead", "model": "minilm", "task": TASK, "agents": AGENTS,
    "schedule": {"cycles": 3, "agents": "rotating", "blocks": ["layers.2-5"], "always": ["pooler", "head"]},
    "train": {"steps": 30, "batch_size": 32, "learning_rate": 1e-3},
}  # fmt: skip
WARM_UP = RUN | {"name": "warm-up", "model": "tiny", "train": {"steps": 1}} | {
    "schedule": {"cycles": 4, "agents": "rotating", "blocks": ["layers.0"], "always": ["pooler", "head"]}
}  # fmt: skip


@dataclass(frozen=True)
class Side:
    """What the same visits took on one side."""

    wall_s: float
    cpu_s: float
    train_s: float
    digests: dict[str, str]
    around_s: float = 0.0
    """CPU time of web process, engine and daemons"""


@contextlib.contextmanager
def followed(system: System) -> Iterator[list[int]]:
    """Somebody reads metrics and follows events; the answer counts both."""
    over, asked, key = threading.Event(), [0, 0], {"Authorization": f"Bearer {system.coordinator.key}"}

    def scrape() -> None:
        with httpx.Client(base_url=system.url, headers=key) as prometheus:
            while not over.is_set():
                prometheus.get("/metrics").raise_for_status()
                asked[0] += 1
                over.wait(SCRAPE_S)

    def follow() -> None:
        with contextlib.suppress(FedError):  # it ends with the system
            for _ in system.client.events():
                asked[1] += 1

    for work in (scrape, follow):
        threading.Thread(target=work, daemon=True).start()
    yield asked
    over.set()


def through_the_system(spec: dict[str, Any], folder: Path, partitions: list[Path], tiny: Path, unseen: bool = False) -> Side:
    with System(folder, dict(zip(AGENTS, partitions, strict=True)), unseen=unseen) as system:
        system.add_model("tiny", tiny)
        system.add_model("minilm", banking77.minilm())
        warm_up = system.create_run(WARM_UP)
        system.start(warm_up)
        system.wait_for(warm_up)
        run_id = system.create_run(spec)
        system.wait_until_idle()
        with contextlib.nullcontext([0, 0]) if unseen else followed(system) as asked:
            cpu = system.cpu_seconds()
            began = system.start(run_id)
            run = system.wait_for(run_id)
            cpu = system.cpu_seconds() - cpu
        print("   CPU s by process: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in cpu.items())
              + f"; metrics read {asked[0]} times, {asked[1]} events followed")  # fmt: skip
        told = next(system.client.events(0, timeout_s=2), None)
        assert (told is None) == unseen, "an unseen system writes no events, any other does"
        visits = system.visits(run_id)
        print(f"   web process: at most {system.web_memory_peak() / 1e6:.0f} MB; {run.bytes.down / 1e6:.0f} MB down, "
              f"{run.bytes.up / 1e6:.0f} MB up; claims answered {spread(_gaps_ms([v for v, _ in visits]), 'ms')} after a delta")  # fmt: skip
        return Side(_at(run.ended_at) - began, cpu.total(), sum(m.seconds for _, m in visits), {b.name: b.digest for b in run.blocks},
                    cpu.total() - cpu["trainers"])  # fmt: skip


def in_one_process(spec: dict[str, Any], partitions: list[Path], tiny: Path) -> Side:
    request = BareRequest(
        model=banking77.minilm(), spec=spec, warm_up_model=tiny, warm_up=WARM_UP,
        partitions=partitions,
    )  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.bare", request.model_dump_json()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **ENVIRONMENT})
    return Side(**BareResult.model_validate(json.loads(done.stdout)).model_dump())


def starts(system: System) -> list[float]:
    """Seconds from `run start` to the first training step, of agents that have never seen a model."""
    found = []
    for name in STARTERS:
        schedule = {"blocks": ["layers.5"], "always": ["pooler", "head"]}
        run_id = system.create_run(RUN | {"name": name, "agents": [name], "schedule": schedule, "train": {"steps": 1, "batch_size": 32}})
        system.wait_until_idle()
        began = system.start(run_id)
        system.wait_for(run_id)
        found.append(_at(system.visits(run_id)[0][1].started_at) - began)
    return found


def _gaps_ms(assignments: list[AssignmentView]) -> list[float]:
    """From `submitted` of each visit to `leased` of the next, by the coordinator's clock."""
    pairs = itertools.pairwise(assignments)
    return [1000 * (_at(after.leased_at) - _at(before.submitted_at)) for before, after in pairs]


def _at(moment: datetime | None) -> float:
    assert moment is not None
    return moment.timestamp()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=2, help="how often each side is measured (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="length of a visit (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this folder and leave it, for a look at the logs")
    options = parser.parse_args()
    spec = RUN | {"train": RUN["train"] | {"steps": options.steps}}
    system_sides, unseen_sides, bare_sides = [], [], []
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        partitions = banking77.partitions(folder / "rows", len(AGENTS))
        tiny = banking77.tiny(folder / "tiny")
        print(f"{'':14}{'wall s':>10}{'CPU s':>10}{'of it training, wall s':>26}")
        for i in range(options.repeats):
            for label, sides, measure in (
                ("bare process", bare_sides, lambda: in_one_process(spec, partitions, tiny)),
                ("system", system_sides, lambda i=i: through_the_system(spec, folder / f"system-{i}", partitions, tiny)),
                ("unseen", unseen_sides, lambda i=i: through_the_system(spec, folder / f"unseen-{i}", partitions, tiny, unseen=True)),
            ):
                side = measure()
                sides.append(side)
                print(f"{label:14}{side.wall_s:10.2f}{side.cpu_s:10.2f}{side.train_s:26.2f}", flush=True)
        assert all(s.digests == system_sides[0].digests for s in [*system_sides, *unseen_sides, *bare_sides]), (
            "the two sides ended in different models"
        )
        print("all sides ended in the same blocks, to the bit")
        with System(folder / "quick", dict.fromkeys(STARTERS, partitions[0])) as system:
            system.add_model("minilm", banking77.minilm())
            seconds = starts(system)
            print(f"run start to first training step, model never seen before: {spread(seconds, 's', 2)} (least / median / greatest)")
            gaps = turnarounds(system, TASK, folder)
            print(f"last byte of a delta to the answer of the next claim, {len(gaps)} times: {spread(gaps, 'ms')}")
    seen, unseen = ([s.around_s / (s.cpu_s - s.around_s) for s in sides] for sides in (system_sides, unseen_sides))
    trainers = statistics.median(1 - s.around_s / s.cpu_s for s in system_sides)
    for name, parts in (("seen", seen), ("unseen", unseen)):
        print(f"web process, engine and daemons, of the CPU time of the trainers, {name}: {spread([100 * part for part in parts], '%', 2)}")
    figures = {
        "wall_ratio": statistics.median(s.wall_s for s in system_sides) / statistics.median(s.wall_s for s in bare_sides),
        "cpu_ratio": statistics.median(s.cpu_s for s in system_sides) / statistics.median(s.cpu_s for s in bare_sides),
        "seen_percent": 100 * (statistics.median(seen) - statistics.median(unseen)) * trainers,
        "turnaround_ms_median": statistics.median(gaps),
        "start_s": statistics.median(seconds),
    }
    finish(figures, TARGETS, options.json)


if __name__ == "__main__":
    main()
