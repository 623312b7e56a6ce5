"""What compression, waves and coded deltas cost in quality, and what they move: `python -m benchmarks.quality --data DIR`.

Two tasks, several seeds (of the head, of who has which rows, and of the order of rows), each run in a process of its own with one thread.

sst2         MiniLM (22.7 M parameters) on 6,000 rows of SST-2 dealt out to six agents, 1,800 others held out; five cycles over its six
             layers, a visit is one pass over an agent's rows; pooler and head along. The anchor trains pooler and head alone, as often.
shakespeare  stories260K (0.26 M) on plays that stay with six agents: 480 steps in all, 80 a visit. The anchor is the base model.

`--data` is a directory with glue_sst2_train.jsonl.gz and glue_sst2_dev.jsonl.gz (fields sentence, label); Shakespeare comes with
the project. Bytes are what the agents of a run fetch and send, against FedAvg of the whole model in bfloat16: down and up, for every
agent, once for as many tokens as a cycle takes.
"""

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.report import finish

AGENTS = 6
ROWS = 6000
HELD_OUT = 1800
NONE: dict[str, Any] = {"compression": {"policy": "none"}, "delta": {"codec": "float32"}}


def compressed(policy: str, codec: str = "int8", feedback: bool = False, **schedule: Any) -> dict[str, Any]:
    return {
        "compression": {"policy": policy, "calibration_rows": 64}, "delta": {"codec": codec, "error_feedback": feedback},
        "schedule": schedule,
    }  # fmt: skip


SHORT: dict[str, Any] = {"train": {"steps": 20}}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "sst2": {
        "head only": {**NONE, "schedule": {"cycles": 30, "blocks": ["pooler"], "always": ["head"]}},
        "none": NONE,
        "int8": compressed("int8"),
        "int4": compressed("int4"),
        "hybrid": compressed("hybrid"),
        "waves of 3": compressed("int8", wave=3, damping=0.4) | {"train": {"learning_rate": 6e-4}},
    },
    "shakespeare": {
        "none": NONE,
        "int8": compressed("int8"),
        "int4": compressed("int4"),
        "int4 deltas": compressed("int8", "int4"),
        "int4 deltas, 4 cycles": SHORT | compressed("int8", "int4", cycles=4, agents="fixed"),
        "the same with feedback": SHORT | compressed("int8", "int4", feedback=True, cycles=4, agents="fixed"),
        "hybrid": compressed("hybrid"),
    },
}
TARGETS = {
    "sst2_int8_points_lost": 0.5, "sst2_int4_points_lost": 1.0, "sst2_waves_serial_ratio": 0.4, "sst2_waves_loss": 0.45,
    "shakespeare_int8_nats_lost": 0.02, "sst2_int8_bytes_ratio": 0.12, "shakespeare_int8_bytes_ratio": 0.12,
}  # fmt: skip


def spec_of(task: str, variant: str, seed: int) -> dict[str, Any]:
    """The run file of one variant."""
    if task == "sst2":
        base: dict[str, Any] = {
            "name": "sst2", "model": "minilm", "task": {"kind": "text-classification", "labels": 2, "max_length": 64},
            "schedule": {"cycles": 5, "order": "ascending", "agents": "fixed", "blocks": ["layers"], "always": ["pooler", "head"]},
            "train": {"epochs": 1, "batch_size": 32, "learning_rate": 3e-4, "learning_rate_decay": 0.75, "always_learning_rate": 2e-3,
                      "always_learning_rate_decay": 0.6, "weight_decay": 0.01},
        }  # fmt: skip
    else:
        base = {
            "name": "shakespeare", "model": "stories260K", "task": {"kind": "causal-lm", "max_length": 128},
            "schedule": {"cycles": 1, "agents": "rotating", "blocks": ["all"], "always": ["norm"]},
            "train": {"steps": 80, "batch_size": 8, "learning_rate": 3e-3},
        }  # fmt: skip
    for section, values in VARIANTS[task][variant].items():
        base[section] = base.get(section, {}) | values
    return base | {"seed": seed, "evaluate": {"held_out": "held-out.jsonl", "digest": "0" * 64, "every": "end"}}


def write_rows(task: str, data: Path, folder: Path, seed: int) -> tuple[list[Path], Path]:
    """One file for each agent, and the held-out one."""
    if task == "sst2":
        train = _read(data / "glue_sst2_train.jsonl.gz")
        random.Random(seed).shuffle(train)
        rest = train[ROWS : ROWS + HELD_OUT - 872]  # the whole development set, and as many others
        held_out = [*_read(data / "glue_sst2_dev.jsonl.gz"), *rest]
        parts = [train[:ROWS][i::AGENTS] for i in range(AGENTS)]
        files = [(folder / f"agent-{i}.jsonl", [_row(r) for r in part]) for i, part in enumerate(parts)]
        files.append((folder / "held-out.jsonl", [_row(r) for r in held_out]))
        for path, rows in files:
            path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return [path for path, _ in files[:-1]], files[-1][0]
    from examples.demo.tasks import shakespeare

    _, paths = shakespeare(folder)
    random.Random(seed).shuffle(paths)
    return paths, folder / "held-out.jsonl"


def _row(row: dict[str, str]) -> dict[str, Any]:
    return {"text": row["sentence"], "label": int(row["label"])}


def _read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def measure(task: str, variant: str, seed: int, data: Path) -> dict[str, Any]:
    """One run, in this process."""
    import torch

    torch.set_num_threads(1)
    from benchmarks import device, reference
    from examples.demo.tasks import EXAMPLES, banking77

    with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
        folder = Path(scratch)
        partitions, held_out = write_rows(task, data, folder / "rows", seed) if task != "sst2" else _made(task, data, folder / "rows", seed)
        model = banking77(folder / "unused")[0].model if task == "sst2" else EXAMPLES / "models" / "stories260K"
        spec = spec_of(task, variant, seed)
        run = reference.begin(folder, model, spec)
        if run.spec.compression["policy"] == "hybrid":
            reference.measure_influence(run, held_out)
        before = run.evaluate(held_out).loss if variant == "none" else 0.0  # it is the same for all
        shared = device.visitor()  # one model in memory, not six; an agent's rows are read again when they are its turn
        reference.run(run, partitions, folder / "scratch", visitors=[shared] * AGENTS)
        after = run.evaluate(held_out)
        parameters = sum(b.num_parameters for b in run.stored)
        visits = len(run.metrics)
        # A pass of every agent over its rows moves the whole model down and up once for each agent.
        exchanges = visits / AGENTS if task == "sst2" else visits * (run.spec.train["steps"] or 0) / (20 * AGENTS)
        fedavg = exchanges * AGENTS * 2 * 2 * parameters
        return {
            "loss_before": before, "loss": after.loss, "accuracy": 100 * (after.accuracy or 0.0), "bytes": run.bytes_moved(),
            "down": sum(h.down for h in run.holdings.values()), "up": sum(h.up for h in run.holdings.values()),
            "fedavg_bytes": fedavg, "serial": run.rounds_done, "visits": visits,
            "delta_error": statistics.mean(m.delta_error or 0.0 for m in run.metrics),
        }  # fmt: skip


def _made(task: str, data: Path, folder: Path, seed: int) -> tuple[list[Path], Path]:
    folder.mkdir(parents=True)
    return write_rows(task, data, folder, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with the SST-2 files")
    parser.add_argument("--task", choices=["sst2", "shakespeare"], action="append")
    parser.add_argument("--variant", action="append", help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--results", type=Path, help="file that every run's result is added to; runs that are in it are not repeated")
    parser.add_argument("--one", nargs=3, metavar=("TASK", "VARIANT", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        task, variant, seed = options.one
        print(json.dumps(measure(task, variant, int(seed), options.data)))
        return
    tasks = options.task or ["sst2", "shakespeare"]
    cases = [(t, v, s) for s in range(options.seeds) for t in tasks for v in VARIANTS[t] if not options.variant or v in options.variant]
    with ThreadPoolExecutor(options.processes) as pool:
        found = list(pool.map(lambda case: _child(case, options.data, options.results), cases))
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (task, variant, _), result in zip(cases, found, strict=True):
        results.setdefault((task, variant), []).append(result)
    figures = report(results)
    finish(figures, {name: target for name, target in TARGETS.items() if name in figures}, options.json)


def _child(case: tuple[str, str, int], data: Path, results: Path | None) -> dict[str, Any]:
    task, variant, seed = case
    for line in results.read_text().splitlines() if results is not None and results.exists() else ():
        if (known := json.loads(line))["case"] == list(case):
            return dict(known["result"])
    command = [sys.executable, "-m", "benchmarks.quality", "--data", str(data), "--one", task, variant, str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if results is not None:
        with results.open("a") as file:
            file.write(json.dumps({"case": case, "result": result}) + "\n")
    print(
        f"{task} {variant} seed {seed}: loss {result['loss']:.4f} accuracy {result['accuracy']:.2f} MB {result['bytes'] / 1e6:.1f}",
        flush=True,
    )
    return result


def report(results: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, float]:
    """Print a table, and return its figures by name."""
    figures: dict[str, float] = {}
    print(f"\n{'task':12} {'variant':22} {'accuracy %':>14} {'held-out loss':>16} {'MB':>8} {'of FedAvg':>9} {'serial':>6} {'left out':>8}")
    for (task, variant), runs in results.items():
        mean = {key: statistics.mean(r[key] for r in runs) for key in runs[0]}
        spread = {key: statistics.stdev(r[key] for r in runs) if len(runs) > 1 else 0.0 for key in ("accuracy", "loss")}
        ratio = mean["bytes"] / mean["fedavg_bytes"]
        print(
            f"{task:12} {variant:22} {mean['accuracy']:7.2f} ± {spread['accuracy']:4.2f} {mean['loss']:9.4f} ± {spread['loss']:5.4f}"
            f" {mean['bytes'] / 1e6:7.1f} {ratio:9.3f} {mean['serial']:6.0f} {mean['delta_error']:8.4f}"
        )
        name = f"{task}_{variant.replace(', ', '_').replace(' ', '_')}"
        figures |= {f"{name}_accuracy": mean["accuracy"], f"{name}_accuracy_sd": spread["accuracy"], f"{name}_loss": mean["loss"],
                    f"{name}_loss_sd": spread["loss"], f"{name}_mb": mean["bytes"] / 1e6, f"{name}_bytes_ratio": ratio}  # fmt: skip
        if variant == "none":
            figures[f"{task}_base_loss"] = mean["loss_before"]
    for variant in ("int8", "int4"):
        if {("sst2", "none"), ("sst2", variant)} <= set(results):
            figures[f"sst2_{variant}_points_lost"] = figures["sst2_none_accuracy"] - figures[f"sst2_{variant}_accuracy"]
        if {("shakespeare", "none"), ("shakespeare", variant)} <= set(results):
            figures[f"shakespeare_{variant}_nats_lost"] = figures[f"shakespeare_{variant}_loss"] - figures["shakespeare_none_loss"]
    if {("sst2", "none"), ("sst2", "waves of 3")} <= set(results):
        strict, waves = results["sst2", "none"], results["sst2", "waves of 3"]
        figures["sst2_waves_serial_ratio"] = waves[0]["serial"] / strict[0]["serial"]
        figures["sst2_waves_loss"] = figures["sst2_waves_of_3_loss"]
    return figures


if __name__ == "__main__":
    main()
