"""What losses and averages do where agents have unlike labels: `python -m benchmarks.label_skew`.

MiniLM (22.7 M parameters) on rows of Banking77 (77 labels; they come with the project), dealt out to six agents: 1,500 rows and 20 held-out rows
of each label, or fewer (`--rows`, `--labels`: the first ones). Three cycles over its six layers, a visit is one pass over an agent's rows; pooler and head
along, frozen blocks and deltas in int8. Every run has a process of its own, with one thread.

equal         every agent has rows of all labels
dirichlet-A   the rows of each label are dealt out in shares drawn from a Dirichlet distribution of parameter A: 0.5 is skewed, 0.1 very
disjoint      each label's rows are all with one agent

strict        one block after another (`wave: 1`)
waves         three at once (`wave: 3`, `damping: 0.4`), the head put together as `schedule.head_average` says
whole         whole models averaged by rows (`method: whole`): three rounds, so as many passes of every agent over its rows for each block

class_means   before the first cycle a round of heads (`schedule.head_start`): as many visits more as there are agents, of the head alone

Each is scored as its last version, and as the average of the versions of the last half of its rounds.
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

from benchmarks.banking77 import LABELS, ROWS, minilm, tiny
from benchmarks.report import arguments

AGENTS, HELD_OUT_OF_A_LABEL = 6, 20
SPLITS = ("equal", "dirichlet-0.5", "dirichlet-0.1", "disjoint")
WHOLE = 0
CYCLES = 3
RATES = {1: 4e-4, 3: 6e-4, WHOLE: 4e-4}
ARMS: dict[str, tuple[int, str, str, str]] = {
    # wave, head_average, label_skew, head_start
    "strict none": (1, "damped", "none", "fresh"),
    "strict mask": (1, "damped", "mask", "fresh"),
    "strict fedlc": (1, "damped", "fedlc", "fresh"),
    "strict logit_adjustment": (1, "damped", "logit_adjustment", "fresh"),
    "strict smoothed": (1, "damped", "smoothed", "fresh"),
    "strict smoothed class_means": (1, "by_label", "smoothed", "class_means"),
    "waves damped none": (3, "damped", "none", "fresh"),
    "waves damped logit_adjustment": (3, "damped", "logit_adjustment", "fresh"),
    "waves mean logit_adjustment": (3, "mean", "logit_adjustment", "fresh"),
    "waves by_label none": (3, "by_label", "none", "fresh"),
    "waves by_label mask": (3, "by_label", "mask", "fresh"),
    "waves by_label fedlc": (3, "by_label", "fedlc", "fresh"),
    "waves by_label logit_adjustment": (3, "by_label", "logit_adjustment", "fresh"),
    "waves by_label smoothed": (3, "by_label", "smoothed", "fresh"),
    "waves by_label smoothed class_means": (3, "by_label", "smoothed", "class_means"),
    "whole mean none": (WHOLE, "mean", "none", "fresh"),
    "whole by_label logit_adjustment": (WHOLE, "by_label", "logit_adjustment", "fresh"),
    "whole by_label smoothed": (WHOLE, "by_label", "smoothed", "fresh"),
    "whole by_label smoothed class_means": (WHOLE, "by_label", "smoothed", "class_means"),
}
MEASURED = ("accuracy", "macro_f1", "never_right", "loss", "average_accuracy", "average_never_right", "average_loss")


def spec_of(arm: str, seed: int, labels: int, rate: float | None = None) -> dict[str, Any]:
    """The run file of one arm; `rate` is the learning rate in place of the arm's own."""
    wave, head_average, label_skew, head_start = ARMS[arm]
    method = "whole" if wave == WHOLE else "block-cycle"
    schedule: dict[str, Any] = {"cycles": CYCLES, "blocks": ["layers"], "always": ["pooler", "head"], "head_average": head_average}
    schedule["head_start"] = head_start
    if method == "block-cycle":
        schedule |= {"wave": wave, "damping": 0.4 if wave > 1 else 1.0}
    return {
        "name": "skew", "model": "minilm", "method": method, "task": {"kind": "text-classification", "labels": labels, "max_length": 64},
        "schedule": schedule,
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": rate or RATES[wave], "learning_rate_decay": 0.75,
                  "always_learning_rate": 5e-3, "always_learning_rate_decay": 0.6, "label_skew": label_skew},
        "compression": {"policy": "none" if method == "whole" else "int8"}, "delta": {"codec": "int8"}, "seed": seed,
    }  # fmt: skip


def deal(rows: list[dict[str, Any]], split: str, seed: int, labels: int) -> list[list[dict[str, Any]]]:
    """One list for each agent; the same whatever is done with them."""
    drawn = random.Random(f"{split}:{seed}")
    if split == "equal":
        return [rows[i::AGENTS] for i in range(AGENTS)]
    parts: list[list[dict[str, Any]]] = [[] for _ in range(AGENTS)]
    order = list(range(labels))
    drawn.shuffle(order)
    for place, label in enumerate(order):
        of_label = [row for row in rows if row["label"] == label]
        shares = [float(i == place % AGENTS) for i in range(AGENTS)]
        if split != "disjoint":
            shares = [drawn.gammavariate(float(split.partition("-")[2]), 1) for _ in range(AGENTS)]
        for row in of_label:
            parts[drawn.choices(range(AGENTS), shares)[0]].append(row)
    return parts


def write_rows(folder: Path, split: str, seed: int, rows: int, labels: int) -> tuple[list[Path], Path]:
    """A file for each agent, and the held-out one."""
    folder.mkdir(parents=True)
    train = [row for row in read_rows(ROWS) if row["label"] < labels]
    random.Random(seed).shuffle(train)
    tested = read_rows(ROWS.with_name("banking77_test.jsonl.gz"))
    held_out = [row for label in range(labels) for row in [row for row in tested if row["label"] == label][:HELD_OUT_OF_A_LABEL]]
    files = [(folder / f"agent-{i}.jsonl", part) for i, part in enumerate(deal(train[:rows], split, seed, labels))]
    files.append((folder / "held-out.jsonl", held_out))
    for path, part in files:
        path.write_text("".join(json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in part))
    return [path for path, _ in files[:-1]], files[-1][0]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Of a compressed file of the project."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def measure(split: str, arm: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """One run, in this process."""
    import torch

    torch.set_num_threads(1)
    from benchmarks import device, reference
    from benchmarks.version_averaging import averaged
    from fedcybgd.coordinator.domain.averages import averaged_rounds

    with tempfile.TemporaryDirectory(prefix="label-skew-") as scratch:
        folder = Path(scratch)
        partitions, held_out = write_rows(folder / "rows", split, seed, options.rows, options.labels)
        model = tiny(folder / "model") if options.tiny else minilm()
        run = reference.begin(folder, model, spec_of(arm, seed, options.labels, options.rate))
        run.tell_labels = not options.untold  # what a run makes of it, its run file says
        versions: list[list[Any]] = []
        shared = [device.visitor()] * AGENTS
        reference.run(run, partitions, folder / "scratch", visitors=shared, after_round=lambda _: versions.append(run.blocks))
        found = run.evaluate(held_out)
        run.blocks = averaged(run.store, versions[-averaged_rounds(0.5, len(versions)) :])
        mean = run.evaluate(held_out)
        return {
            "accuracy": 100 * (found.accuracy or 0.0), "macro_f1": 100 * (found.macro_f1 or 0.0),
            "never_right": float(found.labels_never_right or 0), "loss": found.loss, "average_accuracy": 100 * (mean.accuracy or 0.0),
            "average_never_right": float(mean.labels_never_right or 0), "average_loss": mean.loss,
        }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--split", choices=SPLITS, action="append", help="only these")
    parser.add_argument("--arm", choices=list(ARMS), action="append", help="only these")
    parser.add_argument("--seeds", type=int, default=3, help="of who has which rows, of the head, and of the order of rows")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--labels", type=int, default=LABELS)
    parser.add_argument("--rate", type=float, help="the learning rate of layers, in place of each arm's own")
    parser.add_argument("--untold", action="store_true", help="agents do not tell how many rows of each label they have")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers: whether it runs at all")
    parser.add_argument("--results", type=Path, help="file that every run's result is added to; runs that are in it are not repeated")
    parser.add_argument("--one", nargs=3, metavar=("SPLIT", "ARM", "SEED"), help="a single run, in this process")
    options = parser.parse_args()
    if options.one:
        split, arm, seed = options.one
        print(json.dumps(measure(split, arm, int(seed), options)), flush=True)
        return
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    cases = [(split, arm, seed) for seed in seeds for split in options.split or SPLITS for arm in options.arm or ARMS]
    with ThreadPoolExecutor(options.processes) as pool:
        found = list(pool.map(lambda case: _once(*case, options), cases))
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for (split, arm, _), result in zip(cases, found, strict=True):
        runs.setdefault((split, arm), []).append(result)
    figures = report(runs)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _once(split: str, arm: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """One run, in a process of its own, unless its result is known."""
    sizes = [
        "--rows",
        str(options.rows),
        "--labels",
        str(options.labels),
        *(["--tiny"] if options.tiny else []),
        *(["--untold"] if options.untold else []),
    ]
    sizes += ["--rate", str(options.rate)] if options.rate else []
    case = [split, arm, seed, *sizes]
    for line in options.results.read_text().splitlines() if options.results is not None and options.results.exists() else ():
        if (known := json.loads(line))["case"] == case:
            return dict(known["result"])
    command = [sys.executable, "-m", "benchmarks.label_skew", "--one", split, arm, str(seed), *sizes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    child = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if child.returncode:
        raise RuntimeError(f"{split}, {arm}, seed {seed} failed:\n{child.stderr}")
    result: dict[str, float] = json.loads(child.stdout)
    print(f"{split}, {arm}, seed {seed}: {', '.join(f'{name} {value:.2f}' for name, value in result.items())}", flush=True)
    if options.results is not None:
        with options.results.open("a") as file:
            file.write(json.dumps({"case": case, "result": result}) + "\n")
    return result


def report(runs: dict[tuple[str, str], list[dict[str, float]]]) -> dict[str, float]:
    """Print a table, and return its figures by name: mean and standard deviation over the seeds."""
    figures: dict[str, float] = {}
    print(f"\n{'split':14} {'arm':32} {' '.join(f'{name:>19}' for name in MEASURED)} seeds")
    for (split, arm), found in runs.items():
        shown = []
        for name in MEASURED:
            values = [run[name] for run in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            figures |= {f"{split}/{arm}/{name}": statistics.mean(values), f"{split}/{arm}/{name}_sd": spread}
            shown.append(f"{statistics.mean(values):7.2f} ± {spread:4.2f}")
        print(f"{split:14} {arm:32} {' '.join(f'{text:>19}' for text in shown)} {len(found):5}")
    return figures


if __name__ == "__main__":
    main()
