"""What expanded visits gain over plain ones and against LoRA at equal state of the agent: `python -m benchmarks.expanded`.

stories260K (0.26 M parameters) learns Shakespeare from six agents with plays of their own, in as many steps on either side; frozen blocks and
deltas in int8. All cases of a seed have the same rows. `480` and `2400` are steps in all, of 80 (96 where embeddings are trained in every
visit: there are five blocks then, and not six) a visit.

cycle      the strict block cycle; `+ r2`, `+ r4`: every other layer corrected with that rank; `above`: only those above the visited block.
lora       adapters handed from agent to agent; r11 has the state of an expanded visit with r4, or a little more.
embedded   either with embeddings trained along in every visit.

State is what an agent holds between two steps, counted in the largest visit of a run: of every number that is trained 16 bytes (weight, gradient,
two moments), of what is frozen the bytes of its tensors as they lie in memory. Activations and the process are not in it.

Learning rates (of the corrections, of LoRA's factors) are searched with a seed of their own, on either side over as many values; a best one at an
edge widens the search. What is reported is of other seeds. `CPU ms` is the processor time of a step, loading, encoding and applying included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import finish

AGENTS, FACTOR = 6, 2.0
GRID: Mapping[str, Sequence[float]] = {"cycle": (2e-3, 4e-3, 8e-3), "lora": (4e-3, 8e-3, 1.6e-2)}
SEARCHED = {"cycle + r4": "cycle", "cycle + r4, embedded": "cycle", "lora r11": "lora", "lora r11, embedded": "lora"}
"""case → whose grid: the others of a kind take what these have found"""
CASES = (
    "cycle", "cycle + r2", "cycle + r4", "cycle + r4 above", "lora r9", "lora r11",
    "cycle, embedded", "cycle + r2, embedded", "cycle + r4, embedded", "cycle + r4 above, embedded", "lora r8, embedded", "lora r11, embedded",
)  # fmt: skip
LONG = ("cycle + r4", "lora r11", "cycle, embedded", "cycle + r4, embedded", "lora r11, embedded")
DECAY = 0.8
"""Of all rates, from a pass over the blocks to the next, or over as many steps of adapters; a run of 480 steps has one."""
TARGETS = {"better_than_lora_nats": -0.03, "behind_lora_embedded_nats": 0.02, "behind_lora_embedded_2400_nats": 0.0}


def spec_of(case: str, steps: int, rate: float, seed: int) -> dict[str, Any]:
    """The run file of a case; `rate` is that of the corrections, or of LoRA's factors."""
    embedded, lora, passes = "embedded" in case, case.startswith("lora"), steps // 480
    spec: dict[str, Any] = {
        "name": "expanded", "model": "stories260K", "task": {"kind": "causal-lm", "max_length": 128}, "seed": seed,
        "schedule": {"cycles": passes, "agents": "rotating", "blocks": ["layers"] if embedded else ["all"],
                     "always": ["embeddings", "norm"] if embedded else ["norm"]},
        "train": {"steps": 96 if embedded else 80, "batch_size": 8, "learning_rate": 3e-3, "learning_rate_decay": DECAY,
                  "always_learning_rate_decay": DECAY},
        "compression": {"policy": "int8", "calibration_rows": 0}, "delta": {"codec": "int8"},
    }  # fmt: skip
    if lora:
        visits = 5 if embedded else 6
        rank = int(case.partition(" r")[2].partition(",")[0])
        spec |= {"method": "adapters", "adapters": {"rank": rank, "alpha": 16.0, "combine": "handed"}}
        spec["schedule"] = {"cycles": visits * passes, "always": spec["schedule"]["always"]}
        spec["train"] |= {"learning_rate": rate, "learning_rate_decay": DECAY ** (1 / visits), "always_learning_rate": 3e-3,
                          "always_learning_rate_decay": DECAY ** (1 / visits)}  # fmt: skip
    elif "+" in case:
        layers = "above" if "above" in case else "all"
        spec["corrections"] = {"rank": int(case.partition("+ r")[2][0]), "learning_rate": rate, "layers": layers}
    return spec


def measure(case: str, steps: int, rate: float, seed: int) -> dict[str, float]:
    """One run, in this process."""
    import torch

    torch.set_num_threads(1)
    import random

    from benchmarks import device, reference
    from examples.demo.tasks import EXAMPLES, shakespeare

    with tempfile.TemporaryDirectory(prefix="expanded-") as scratch:
        folder = Path(scratch)
        _, partitions = shakespeare(folder / "rows")
        random.Random(seed).shuffle(partitions)
        run = reference.begin(folder, EXAMPLES / "models" / "stories260K", spec_of(case, steps, rate, seed))
        visitor = device.visitor()
        states: list[int] = []
        _watch(states)
        began = time.process_time()
        reference.run(run, partitions, folder / "scratch", visitors=[visitor] * AGENTS)
        seconds = time.process_time() - began
        return {
            "loss": run.evaluate(folder / "rows" / "held-out.jsonl").loss, "state_mb": max(states) / 1e6,
            "down_mb": sum(h.down for h in run.holdings.values()) / 1e6, "up_mb": sum(h.up for h in run.holdings.values()) / 1e6,
            "seconds": seconds,
            "peak_mb": max(m.peak_memory_bytes for m in run.metrics) / 1e6, "steps": sum(m.steps for m in run.metrics),
        }  # fmt: skip


def _watch(states: list[int]) -> None:
    """Have what an agent holds written down whenever a training begins."""
    from fedcybgd.agent.training import visitor
    from fedcybgd.agent.training.train import train

    def watched(visit: Any, groups: Any, *rest: Any) -> Any:
        states.append(_state(visit.model, groups))
        return train(visit, groups, *rest)

    visitor.train = watched  # type: ignore[attr-defined]


def _state(model: Any, groups: Any) -> int:
    """Bytes of weights as they are held, and of what training adds to those that are trained."""
    trained = {id(p): 16 * p.numel() for group in groups for p in group.parameters}
    frozen = {id(p): p.nbytes for p in model.parameters() if p.device.type != "meta" and id(p) not in trained}
    for module in model.modules():
        if (quantized := getattr(module, "quantized", None)) is not None:
            parts = (quantized.codes, quantized.scales, quantized.offsets)
            frozen[id(quantized.codes)] = sum(part.nbytes for part in parts if part is not None)
    return sum(trained.values()) + sum(frozen.values())


class Results:
    """Of every run that was made; `file` keeps them, so that none is made twice."""

    def __init__(self, file: Path | None) -> None:
        self._file, self._known = file, dict[tuple[Any, ...], dict[str, float]]()
        for line in file.read_text().splitlines() if file is not None and file.exists() else ():
            kept = json.loads(line)
            self._known[tuple(kept["case"])] = kept["result"]

    def of(self, case: str, steps: int, rate: float, seed: int) -> dict[str, float]:
        key = (case, steps, rate, seed)
        if key not in self._known:
            command = [sys.executable, "-m", "benchmarks.expanded", "--one", case, str(steps), str(rate), str(seed)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(f"{key} failed:\n{done.stderr}")
            self._known[key] = json.loads(done.stdout.splitlines()[-1])
            if self._file is not None:
                with self._file.open("a") as file:
                    file.write(json.dumps({"case": key, "result": self._known[key]}) + "\n")
            print(f"{case:28} {steps:5} rate {rate:7.4f} seed {seed}: {self._known[key]['loss']:.4f}", flush=True)
        return self._known[key]

    def searched(self, case: str, steps: int, grid: Sequence[float]) -> float:
        """The rate of the least loss, with seed 0; one at an edge of the grid has neighbours tried beyond it."""
        losses = {rate: self.of(case, steps, rate, 0)["loss"] for rate in grid}
        while True:
            best = min(losses, key=losses.__getitem__)
            beyond = best * FACTOR if best == max(losses) else best / FACTOR if best == min(losses) else None
            if beyond is None:
                return best
            losses[beyond] = self.of(case, steps, beyond, 0)["loss"]


def _same(case: str) -> str:
    """The searched case whose rate a case takes."""
    return ("lora r11" if case.startswith("lora") else "cycle + r4") + (", embedded" if "embedded" in case else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--long", action="store_true", help="2,400 steps, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--results", type=Path, help="file that every run's result is added to; runs that are in it are not repeated")
    parser.add_argument("--one", nargs=4, metavar=("CASE", "STEPS", "RATE", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case, steps, rate, seed = options.one
        print(json.dumps(measure(case, int(steps), float(rate), int(seed))))
        return
    results = Results(options.results)
    rates = {case: results.searched(case, 480, GRID[grid]) for case, grid in SEARCHED.items()}
    figures: dict[str, float] = {}
    print(
        f"\n{'case':28} {'steps':>5} {'rate':>7} {'held-out loss':>16} {'state MB':>8} {'down':>6} {'up':>6} {'CPU ms':>8} {'peak MB':>8}"
    )
    for steps, cases in ((480, CASES), *(((2400, LONG),) if options.long else ())):
        for case in cases:
            found = [results.of(case, steps, rates[_same(case)], seed) for seed in range(1, options.seeds + 1)]
            mean = {key: statistics.mean(run[key] for run in found) for key in found[0]}
            spread = statistics.stdev(run["loss"] for run in found) if len(found) > 1 else 0.0
            print(
                f"{case:28} {steps:5} {rates[_same(case)]:7.4f} {mean['loss']:8.4f} ± {spread:5.4f} {mean['state_mb']:8.3f} {mean['down_mb']:6.2f}"
                f" {mean['up_mb']:6.2f} {1000 * mean['seconds'] / mean['steps']:8.1f} {mean['peak_mb']:8.0f}"
            )
            name = f"{case.replace(' + ', '_').replace(', ', '_').replace(' ', '_')}_{steps}"
            figures |= {f"{name}_loss": mean["loss"], f"{name}_sd": spread, f"{name}_state_mb": mean["state_mb"]}
    figures["better_than_lora_nats"] = figures["cycle_r4_480_loss"] - figures["lora_r11_480_loss"]
    figures["behind_lora_embedded_nats"] = figures["cycle_r4_embedded_480_loss"] - figures["lora_r11_embedded_480_loss"]
    if options.long:
        figures["behind_lora_embedded_2400_nats"] = figures["cycle_r4_embedded_2400_loss"] - figures["lora_r11_embedded_2400_loss"]
    finish(figures, {name: target for name, target in TARGETS.items() if name in figures}, options.json)


if __name__ == "__main__":
    main()
