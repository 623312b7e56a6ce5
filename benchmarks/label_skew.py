"""What losses and averages do where agents have unlike labels: `python -m benchmarks.label_skew`.

MiniLM (22.7 M parameters) on 1,500 rows of Banking77 (77 labels; they come with the project), dealt out to six agents, 1,540 test rows held out.
Three cycles over its six layers, a visit is one pass over an agent's rows; pooler and head along, frozen blocks and deltas in int8.

equal         every agent has rows of all labels
dirichlet-A   the rows of each label are dealt out in shares drawn from a Dirichlet distribution of parameter A: 0.5 is skewed, 0.1 very
disjoint      each label's rows are all with one agent

strict        one block after another (`wave: 1`)
waves         three at once (`wave: 3`, `damping: 0.4`), the head put together as `schedule.head_average` says
"""

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

AGENTS, TRAIN_ROWS, HELD_OUT_ROWS = 6, 1500, 1540
SPLITS = ("equal", "dirichlet-0.5", "dirichlet-0.1", "disjoint")
ARMS: dict[str, tuple[int, str, str]] = {
    # wave, head_average, label_skew
    "strict none": (1, "damped", "none"),
    "strict mask": (1, "damped", "mask"),
    "strict fedlc": (1, "damped", "fedlc"),
    "strict logit_adjustment": (1, "damped", "logit_adjustment"),
    "waves damped none": (3, "damped", "none"),
    "waves damped logit_adjustment": (3, "damped", "logit_adjustment"),
    "waves mean logit_adjustment": (3, "mean", "logit_adjustment"),
    "waves by_label none": (3, "by_label", "none"),
    "waves by_label mask": (3, "by_label", "mask"),
    "waves by_label fedlc": (3, "by_label", "fedlc"),
    "waves by_label logit_adjustment": (3, "by_label", "logit_adjustment"),
}
MEASURED = ("accuracy", "macro_f1", "never_right", "loss")


def spec_of(arm: str, seed: int) -> dict[str, Any]:
    """The run file of one arm."""
    wave, head_average, label_skew = ARMS[arm]
    rate = 6e-4 if wave > 1 else 4e-4
    return {
        "name": "skew", "model": "minilm", "task": {"kind": "text-classification", "labels": LABELS, "max_length": 64},
        "schedule": {"cycles": 3, "blocks": ["layers"], "always": ["pooler", "head"], "wave": wave, "damping": 0.4 if wave > 1 else 1.0,
                     "head_average": head_average},
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": rate, "learning_rate_decay": 0.75, "always_learning_rate": 5e-3,
                  "always_learning_rate_decay": 0.6, "label_skew": label_skew},
        "compression": {"policy": "int8"}, "delta": {"codec": "int8"}, "seed": seed,
    }  # fmt: skip


def deal(rows: list[dict[str, Any]], split: str, seed: int) -> list[list[dict[str, Any]]]:
    """One list for each agent; the same whatever is done with them."""
    drawn = random.Random(f"{split}:{seed}")
    if split == "equal":
        return [rows[i::AGENTS] for i in range(AGENTS)]
    parts: list[list[dict[str, Any]]] = [[] for _ in range(AGENTS)]
    order = list(range(LABELS))
    drawn.shuffle(order)
    for place, label in enumerate(order):
        of_label = [row for row in rows if row["label"] == label]
        shares = [float(i == place % AGENTS) for i in range(AGENTS)]
        if split != "disjoint":
            shares = [drawn.gammavariate(float(split.partition("-")[2]), 1) for _ in range(AGENTS)]
        for row in of_label:
            parts[drawn.choices(range(AGENTS), shares)[0]].append(row)
    return parts


def write_rows(folder: Path, split: str, seed: int) -> tuple[list[Path], Path]:
    """A file for each agent, and the held-out one."""
    folder.mkdir(parents=True)
    train = _read(ROWS)
    random.Random(seed).shuffle(train)
    held_out = _read(ROWS.with_name("banking77_test.jsonl.gz"))
    random.Random(0).shuffle(held_out)
    files = [(folder / f"agent-{i}.jsonl", part) for i, part in enumerate(deal(train[:TRAIN_ROWS], split, seed))]
    files.append((folder / "held-out.jsonl", held_out[:HELD_OUT_ROWS]))
    for path, rows in files:
        path.write_text("".join(json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows))
    return [path for path, _ in files[:-1]], files[-1][0]


def _read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def measure(split: str, arm: str, seed: int, small: bool) -> dict[str, float]:
    """One run, in this process."""
    import torch

    torch.set_num_threads(1)
    from benchmarks import reference
    from fedcybgd.agent.training.visitor import Visitor

    with tempfile.TemporaryDirectory(prefix="label-skew-") as scratch:
        folder = Path(scratch)
        partitions, held_out = write_rows(folder / "rows", split, seed)
        run = reference.begin(folder, tiny(folder / "model") if small else minilm(), spec_of(arm, seed))
        run.tell_labels = True  # what a run makes of it, its run file says
        reference.run(run, partitions, folder / "scratch", visitors=[Visitor("cpu")] * AGENTS)
        found = run.evaluate(held_out)
        return {
            "accuracy": 100 * (found.accuracy or 0.0), "macro_f1": 100 * (found.macro_f1 or 0.0),
            "never_right": float(found.labels_never_right or 0), "loss": found.loss,
        }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--split", choices=SPLITS, action="append", help="only these")
    parser.add_argument("--arm", choices=list(ARMS), action="append", help="only these")
    parser.add_argument("--seeds", type=int, default=3, help="of who has which rows, of the head, and of the order of rows")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers: whether it runs at all")
    parser.add_argument("--results", type=Path, help="file that every run's result is added to; runs that are in it are not repeated")
    parser.add_argument("--one", nargs=3, metavar=("SPLIT", "ARM", "SEED"), help="one run, as JSON")
    options = parser.parse_args()
    if options.one:
        split, arm, seed = options.one
        print(json.dumps(measure(split, arm, int(seed), options.tiny)))
        return
    cases = [(split, arm, s) for s in range(options.seeds) for split in options.split or SPLITS for arm in options.arm or ARMS]
    with ThreadPoolExecutor(options.processes) as pool:
        found = list(pool.map(lambda case: _child(case, options.tiny, options.results), cases))
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for (split, arm, _), result in zip(cases, found, strict=True):
        runs.setdefault((split, arm), []).append(result)
    figures = report(runs)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _child(case: tuple[str, str, int], small: bool, results: Path | None) -> dict[str, float]:
    for line in results.read_text().splitlines() if results is not None and results.exists() else ():
        if (known := json.loads(line))["case"] == [*case]:
            return dict(known["result"])
    command = [sys.executable, "-m", "benchmarks.label_skew", "--one", case[0], case[1], str(case[2]), *(["--tiny"] if small else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if results is not None:
        with results.open("a") as file:
            file.write(json.dumps({"case": case, "result": result}) + "\n")
    print(f"{case[0]}, {case[1]}, seed {case[2]}: accuracy {result['accuracy']:.1f}, never right {result['never_right']:.0f}", flush=True)
    return result


def report(runs: dict[tuple[str, str], list[dict[str, float]]]) -> dict[str, float]:
    """Print a table, and return its figures by name: mean and standard deviation over the seeds."""
    figures: dict[str, float] = {}
    print(f"\n{'split':14} {'arm':32} {'accuracy %':>14} {'macro-F1 %':>14} {'never right':>16} {'held-out loss':>16} seeds")
    for (split, arm), found in runs.items():
        shown = []
        for name in MEASURED:
            values = [run[name] for run in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            figures |= {f"{split}/{arm}/{name}": statistics.mean(values), f"{split}/{arm}/{name}_sd": spread}
            shown.append(f"{statistics.mean(values):7.2f} ± {spread:4.2f}")
        print(f"{split:14} {arm:32} {shown[0]:>14} {shown[1]:>14} {shown[2]:>16} {shown[3]:>16} {len(found):5}")
    return figures


if __name__ == "__main__":
    main()
