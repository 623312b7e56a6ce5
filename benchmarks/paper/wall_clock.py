"""What does compression cost in time, and at which bandwidth does it pay?

MiniLM (22.7 M parameters) on SST-2, six agents, the strict cycle over its six layers twice, three steps of 16 rows a visit. The rounds of the second cycle
are measured: agents have older versions by then, as in a long run. Times are seconds of the processor, one thread, so that they hold on a busy machine:

coordinator  apply the delta, and encode the changed block for those who will ask for it: exact and in the policy's codec, packed, with patches
unpack       what an agent fetched, at the speed that a block of layers is unpacked with, measured beside
load         from the request to the first step: hashes verified, blocks put in place
step         one step of training, in an emulator of such blocks
delta        from the last step to the delta's file: encoded and packed

Transfer is computed: the bytes that the agents of such a round fetch and send, through a line of so many Mbit/s, one way after the other, no latency.
A *round* has 20 steps. *Pays below* is the bandwidth under which a round is shorter than with nothing compressed; unlimited where compute is no dearer.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from benchmarks.paper.federation import Place, reviews_spec
from benchmarks.paper.table import Figures, mean, show, summary
from benchmarks.reference import Reference
from fedcybgd.agent.messages import TrainRequest
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.files import lossless

NOTHING = "none / float32"
ARMS = (NOTHING, "none / int8", "int8 / int8", "int4 / int8", "int4 / int4", "hybrid / int8")
"""policy / delta"""
STEPS, STEPS_OF_A_ROUND = 3, 20
BANDWIDTHS = (10, 100, 1000)
"""Mbit/s"""
PARTS = ("coordinator", "unpack", "load", "step", "delta")


class Timed(Visitor):
    """A visitor that looks at the processor's clock when a visit begins, before each of its steps, and when it ends."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.marks: list[float] = []

    def visit(self, request: TrainRequest, report: Callable[[Progress], None], should_stop: Callable[[], bool]) -> TrainMetrics:
        self.marks = [time.process_time()]

        def before_a_step() -> bool:
            self.marks.append(time.process_time())
            return should_stop()

        try:
            return super().visit(request, report, before_a_step)
        finally:
            self.marks.append(time.process_time())


def measure(arm: str, seed: int, place: Place) -> Figures:
    policy, _, codec = arm.partition(" / ")
    folder, federation = place.scratch(), place.reviews(seed)
    visitor: Timed = place.once("timed visitor", Timed)
    federation.visitors = [visitor] * len(federation.partitions)
    spec = reviews_spec(seed, schedule={"cycles": 2, "always": ["head"]}, compression={"policy": policy}, delta={"codec": codec})
    del spec["train"]["epochs"]
    run = federation.begin(folder, spec | {"train": spec["train"] | {"steps": STEPS}})
    rounds: list[Figures] = []
    for _ in range(run.spec.rounds(run.trained)):
        down, up, began = sum(h.down for h in run.holdings.values()), sum(h.up for h in run.holdings.values()), time.process_time()
        federation.go_on(run, folder, 1)
        ended, marks = time.process_time(), visitor.marks
        rounds.append({
            "coordinator": ended - began - (marks[-1] - marks[0]), "load": marks[1] - marks[0],
            "step": median(after - before for before, after in pairwise(marks[1:-1])),
            # The last step ends with no mark of its own.
            "rest": marks[-1] - marks[-2],
            "MB down": (sum(h.down for h in run.holdings.values()) - down) / 1e6, "MB up": (sum(h.up for h in run.holdings.values()) - up) / 1e6,
        })  # fmt: skip
    second = rounds[len(rounds) // 2 :]
    found = {name: fmean(one[name] for one in second) for name in second[0]}
    found["delta"] = max(0.0, found.pop("rest") - found["step"])
    found["unpack"] = found["MB down"] * place.once(("unpack", seed, policy), lambda: _unpacking(run, policy, folder))
    return found


def _unpacking(run: Reference, policy: str, folder: Path) -> float:
    """Seconds that a megabyte takes which arrives packed, of a block of layers in the codec that most blocks travel in."""
    codec = {"none": "exact", "hybrid": "exact"}.get(policy, policy)
    layer = next(b for b in run.stored if b.kind == "layer")
    config = next(f for f in run.file_refs if f.name == "config.json")
    made = ShardEncoder(run.store, config, run.spec.task.kind).encode(run.digests()[layer.name], codec)
    took: list[float] = []
    for _ in range(3):
        with _clock(took):
            lossless.unpack(run.store.path(made.packed.digest), folder / "unpacked", made.size)
    return min(took) / (made.packed.size / 1e6)


@contextmanager
def _clock(took: list[float]) -> Iterator[None]:
    began = time.process_time()
    yield
    took.append(time.process_time() - began)


def report(found: dict[str, list[Figures]]) -> Figures:
    """Times of the parts; of a whole round at each bandwidth, and in percent of one with nothing compressed."""
    for runs in found.values():
        for run in runs:
            run["compute"] = sum(run[part] * (STEPS_OF_A_ROUND if part == "step" else 1) for part in PARTS)
            for bandwidth in BANDWIDTHS:
                run[f"at {bandwidth}"] = run["compute"] + 8 * (run["MB down"] + run["MB up"]) / bandwidth
    show(found, {**dict.fromkeys(PARTS, 3), "MB down": 2, "MB up": 2}, "policy / delta")
    show(found, {"compute": 2} | {f"at {bandwidth}": 2 for bandwidth in BANDWIDTHS}, "s a round, Mbit/s")
    figures = summary(found)
    for arm, runs in found.items() if NOTHING in found else ():
        plain = found[NOTHING]
        saved = 8 * (mean(plain, "MB down") + mean(plain, "MB up") - mean(runs, "MB down") - mean(runs, "MB up"))
        dearer = mean(runs, "compute") - mean(plain, "compute")
        if arm != NOTHING:
            figures[f"{arm}/pays below Mbit/s"] = saved / dearer if dearer > 0 else math.inf
            shares = ", ".join(f"{100 * mean(runs, f'at {b}') / mean(plain, f'at {b}'):.0f} % at {b}" for b in BANDWIDTHS)
            print(f"{arm:16} pays below {figures[f'{arm}/pays below Mbit/s']:.0f} Mbit/s; a round takes {shares}")
    return figures
