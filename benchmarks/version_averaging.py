"""What averaging the versions of the last part of a run gains over its last version: `python -m benchmarks.version_averaging`.

Both are of one and the same run, scored on the same held-out rows; several seeds (of the head, of who has which rows, of the order of rows).

banking77    MiniLM (22.7 M parameters) on Banking77 of the demo, six agents, the strict cycle over its six layers, head along, `int8`.
shakespeare  stories260K (0.26 M) on plays that stay with six agents: the strict cycle over all blocks, `int8`.

Learning rates do not fall. `--part` is what `average_versions.last` says.
"""

import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import arguments, finish
from examples.demo.tasks import EXAMPLES, banking77, shakespeare

TASKS = ("shakespeare", "banking77")
INT8: dict[str, Any] = {"compression": {"policy": "int8", "calibration_rows": 0}, "delta": {"codec": "int8"}}
HELD_OUT = 600


def spec_of(task: str, cycles: int, seed: int) -> dict[str, Any]:
    """The run file of a task."""
    base: dict[str, Any] = {
        "name": task,
        "seed": seed,
        **INT8,
        "evaluate": {"held_out": "held-out.jsonl", "digest": "0" * 64, "every": "end"},
    }
    if task == "banking77":
        return base | {
            "model": "minilm", "task": yaml.safe_load((EXAMPLES / "banking77" / "run.yaml").read_text())["task"],
            "schedule": {"cycles": cycles, "agents": "rotating", "blocks": ["layers"], "always": ["head"]},
            "train": {"steps": 12, "batch_size": 16, "learning_rate": 4e-4, "always_learning_rate": 5e-3},
        }  # fmt: skip
    return base | {
        "model": "stories260K", "task": {"kind": "causal-lm", "max_length": 128},
        "schedule": {"cycles": cycles, "agents": "rotating", "blocks": ["all"], "always": ["norm"]},
        "train": {"steps": 20, "batch_size": 8, "learning_rate": 3e-3},
    }  # fmt: skip


def write_rows(task: str, folder: Path, seed: int) -> tuple[Path, list[Path], Path]:
    """The model, one file for each agent, and the held-out one."""
    found, paths = banking77(folder) if task == "banking77" else shakespeare(folder)
    held_out = folder / "held-out.jsonl"
    if task == "banking77":
        with gzip.open(EXAMPLES / "banking77" / "banking77_test.jsonl.gz", "rt", encoding="utf-8") as file:
            held_out.write_text(file.read())
    rows = held_out.read_text().splitlines(keepends=True)
    random.Random(0).shuffle(rows)  # the same for all seeds
    held_out.write_text("".join(rows[:HELD_OUT]))
    random.Random(seed).shuffle(paths)
    return found.model, paths, held_out


def measure(task: str, cycles: int, part: float, seed: int) -> dict[str, float]:
    """One run, in this process: the scores of its last version and of the average."""
    import torch

    torch.set_num_threads(1)
    from benchmarks import device, reference
    from fedcybgd.coordinator.domain.averages import averaged_rounds

    with tempfile.TemporaryDirectory(prefix="averaging-") as scratch:
        folder = Path(scratch)
        model, partitions, held_out = write_rows(task, folder / "rows", seed)
        run = reference.begin(folder, model, spec_of(task, cycles, seed))
        models = []
        reference.run(
            run,
            partitions,
            folder / "scratch",
            visitors=[device.visitor()] * len(partitions),
            after_round=lambda _: models.append(run.blocks),
        )
        last = run.evaluate(held_out)
        rounds = averaged_rounds(part, len(models))
        run.blocks = averaged(run.store, models[-rounds:])
        mean = run.evaluate(held_out)
        return {
            "rounds": len(models), "averaged": rounds, "last_loss": last.loss, "average_loss": mean.loss,
            "last_accuracy": 100 * (last.accuracy or 0.0), "average_accuracy": 100 * (mean.accuracy or 0.0),
        }  # fmt: skip


def averaged(store: Any, versions: Sequence[Sequence[Any]]) -> list[Any]:
    """The blocks of the mean of the models that rounds ended with."""
    return [_average(store, list(of)) for of in zip(*versions, strict=True)]


def _average(store: Any, versions: list[Any]) -> Any:
    """The mean of the versions of a block that the rounds ended with, by the product's own arithmetic."""
    from safetensors.torch import load_file, save

    from fedcybgd.coordinator.engine.candidates import RunningMean
    from fedcybgd.coordinator.engine.shards import write_blob

    counted = [(ref, len(list(same))) for ref, same in groupby(versions)]
    if len(counted) == 1:
        return versions[-1]
    tensors = [(load_file(store.path(ref.digest)), rounds) for ref, rounds in counted]
    means = {}
    for name, tensor in tensors[-1][0].items():
        first, rounds = tensors[0]
        mean = RunningMean(first[name].to(tensor.dtype), rounds)
        for values, rounds in tensors[1:]:
            mean.add(values[name].to(tensor.dtype), rounds)
        means[name] = mean.value if tensor.is_floating_point() else tensor
    digest, size = write_blob(store, save(means))
    return versions[-1].model_copy(update={"digest": digest, "size": size, "version": versions[-1].version + 1})


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cycles", type=int, default=4)
    parser.add_argument("--part", type=float, default=0.5)
    parser.add_argument("--one", nargs=2, metavar=("TASK", "SEED"), help="one run, in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], options.cycles, options.part, int(options.one[1]))))
        return
    figures: dict[str, float] = {}
    for task in options.task or TASKS:
        found = [_child(task, seed, options.cycles, options.part) for seed in range(options.seeds)]
        for key, sign in (("loss", -1), ("accuracy", 1)):
            gains = [sign * (run[f"average_{key}"] - run[f"last_{key}"]) for run in found]
            spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
            figures |= {
                f"{task}_last_{key}": statistics.mean(run[f"last_{key}"] for run in found),
                f"{task}_average_{key}": statistics.mean(run[f"average_{key}"] for run in found),
                f"{task}_{key}_gain": statistics.mean(gains), f"{task}_{key}_gain_sd": spread,
                f"{task}_{key}_better_in": sum(gain > 0 for gain in gains),
            }  # fmt: skip
    finish(figures, {}, options.json)


def _child(task: str, seed: int, cycles: int, part: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.version_averaging", "--one", task, str(seed), "--cycles", str(cycles), "--part", str(part)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{task}, seed {seed} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{task} seed {seed}: {found}", flush=True)
    return found


if __name__ == "__main__":
    main()
