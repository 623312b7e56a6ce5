"""Which method is better where: the block cycle, averaging of whole models and adapters beside each other. `python -m benchmarks.methods --data DIR`.

Same rows, agents, seeds and passes over the rows. MiniLM (22.7 M parameters) on SST-2, Banking77, MRPC and QNLI, stories260K on Shakespeare; six agents.

blocks            the default recipe: waves of 3 blocks, damping 0.4, another agent for each block in every cycle, what is trained begins at values
                  rounded to 8 bits; by name alone `blocks exact`: the same from exact values
blocks expanded   the same, and each visit corrects the layers that it does not train by rank 4, at a rate of 2e-3 that is not searched. By name alone
blocks of two     the same with two layers a block: three agents a round, and twice the rounds. By name alone
strict            one block after another; `strict fixed`: each block always with the same agent
whole             every agent trains the whole model, and the mean is taken (FedAvg)
adapters r8, r16  LoRA beside all linear matrices, averaged; `equal`: of the rank that takes the state of a block's visit; `handed` from agent to agent
… faster head     three times the rate of pooler and head, which is no part of the search: by name alone
head              the anchor: pooler and head alone; `base`: the model as it comes, its head fresh; and the majority class

Every method has a learning-rate search of its own on a seed that is not reported: three values, a factor of two apart, and further ones while the
best is at an edge, at most three. Held-out rows are parted: some choose the rate and whether the last version or the average of those of the second
half of the rounds is kept, and on them a head is calibrated (`head calibrated`, as `fedcoord init` has it); the figures are of the others. `--data` has
the glue_*.jsonl.gz files; Banking77 and Shakespeare come with the project.
`state` is what an agent holds for training: 16 bytes a trained parameter (value, gradient, two moments), and frozen blocks in their codec. FedAvg's
bytes are those of the whole model in bfloat16, down and up, once a cycle for each agent.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.method_arms import AGENTS, ARMS, TASKS, spec_of, write_rows
from benchmarks.report import arguments
from fedcybgd.coordinator.commands.scatter import Point, scatter

SEARCH_SEED, FACTOR, FURTHER = 1000, 2.0, 3
DEFAULT_ROWS = 3000
SHOWN = ("accuracy", "macro_f1", "loss", "accuracy_gain", "loss_gain", "calibrated_accuracy", "calibrated_loss")
"""Columns of the table"""
Result = dict[str, Any]
COLUMNS = (
    "accuracy", "macro_f1", "loss", "last_accuracy", "last_loss", "average_accuracy", "average_loss", "accuracy_gain", "loss_gain",
    "calibrated_accuracy", "calibrated_loss", "state",
    "state_share", "bytes", "bytes_share", "serial", "visits", "tokens", "seconds", "majority",
)  # fmt: skip


def measure(task: str, arm: str, rate: float, seed: int, options: argparse.Namespace, searching: bool = False) -> Result:
    """One run, in this process: scores of its last version and of its average, and what it cost."""
    import torch

    torch.set_num_threads(1)
    from benchmarks import device, reference
    from benchmarks.banking77 import minilm, tiny
    from benchmarks.version_averaging import _average
    from examples.demo.tasks import EXAMPLES
    from fedcybgd.coordinator.domain.averages import averaged_rounds

    with tempfile.TemporaryDirectory(prefix="methods-") as scratch:
        folder = Path(scratch)
        partitions, selection, reported = write_rows(task, options.data, folder / "rows", seed, rows_of(task, options, searching))
        source = EXAMPLES / "models" / "stories260K"
        if TASKS[task].labels is not None:
            source = tiny(folder / "model") if options.tiny else minilm()
        run = reference.begin(folder, source, spec_of(task, arm, rate, seed, options.cycles, options.tiny))
        run.tell_labels = True  # the default recipe puts a head together by them
        versions, seconds = [run.blocks], 0.0
        if arm != "base":
            versions, visitors = [], [device.visitor()] * AGENTS
            seconds = reference.run(
                run, partitions, folder / "scratch", visitors=visitors, after_round=lambda _: versions.append(run.blocks)
            )
        state = _state(run) if arm != "base" and not searching else 0
        count = averaged_rounds(0.5, len(versions))
        average = [_average(run.store, list(of)) for of in zip(*versions[-count:], strict=True)]
        scores: dict[str, dict[str, Any]] = {}
        for name, blocks in (("last", versions[-1]), ("average", average)):
            run.blocks = blocks
            scores[name] = {"selection": _scored(run, selection)}
            if not searching:
                scores[name]["reported"] = _scored(run, reported)
                scores[name]["calibrated"] = _calibrated(run, selection, reported)
        parameters = sum(block.num_parameters for block in run.stored if block.name != "adapters")
        return {
            "scores": scores, "state": state, "full_state": 16 * parameters, "bytes": run.bytes_moved(),
            "fedavg_bytes": options.cycles * AGENTS * 2 * 2 * parameters, "serial": run.rounds_done, "visits": len(run.metrics),
            "tokens": sum(m.tokens for m in run.metrics), "peak_memory": max((m.peak_memory_bytes for m in run.metrics), default=0), "seconds": seconds,
        }  # fmt: skip


def _scored(run: Any, rows: Path) -> dict[str, float | None]:
    found = run.evaluate(rows)
    return {name: getattr(found, name) for name in ("accuracy", "macro_f1", "loss", "majority")}


def _calibrated(run: Any, chosen: Path, rows: Path) -> dict[str, float | None] | None:
    """The score on `rows` with its head calibrated on those that choose; None: there is no such head, or it is left as it is."""
    from fedcybgd.coordinator.engine.head_calibration import calibrate

    made = calibrate(run.store, run.scoring(chosen), "last")
    if made is None or made.head is None:
        return None
    run.blocks = [made.head if ref.block == made.head.block else ref for ref in run.blocks]
    return _scored(run, rows)


def _state(run: Any) -> int:
    """The most that any visit of the first cycle holds for training, in bytes."""
    from fedcybgd.coordinator.engine.encode import ShardEncoder

    config = next(f for f in run.file_refs if f.name == "config.json")
    encoder = ShardEncoder(run.store, config, run.spec.task.kind)
    parameters = {block.name: block.num_parameters for block in run.stored}
    held = []
    for number in range(len(run.trained)):
        for order in run.spec.round(run.trained, AGENTS, number) if number < run.spec.rounds(run.trained) else ():
            codecs = run.plan(set(order.trained))
            frozen = sum(
                run.shard(encoder, block, codecs[block.block], set()).size for block in run.blocks if block.block not in order.trained
            )
            held.append(frozen + 16 * (sum(parameters[name] for name in order.trained) + _factors(run, order)))
    return int(max(held))


def _factors(run: Any, order: Any) -> int:
    """How many numbers a visit trains of corrections of other layers."""
    matrices = {block.name: {tensor.name: tensor.shape for tensor in block.tensors if tensor.linear} for block in run.stored}
    told = run.spec.corrected(order, run.trained, {name: list(found) for name, found in matrices.items()})
    shapes = {name: shape for found in matrices.values() for name, shape in found.items()}
    return sum(told["rank"] * sum(shapes[name]) for name in told["matrices"]) if told else 0


def rows_of(task: str, options: argparse.Namespace, searching: bool) -> int:
    """How many rows all agents together train on; 0 for the language model, whose plays are always the same."""
    if TASKS[task].labels is None:
        return 0
    said = {name: int(number) for name, _, number in (text.rpartition("=") for text in options.rows)}
    rows = said.get(task, said.get("", DEFAULT_ROWS))
    return max(AGENTS, rows // 2) if searching else rows


def better(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """By the accuracy, for language models by the loss; as the product compares them."""
    value = [-s["loss"] if s["accuracy"] is None else s["accuracy"] for s in (one, other)]
    return bool(value[0] > value[1])


def kept(result: Result) -> str:
    """Which of the two versions the rows that choose would keep."""
    scores = result["scores"]
    return "average" if better(scores["average"]["selection"], scores["last"]["selection"]) else "last"


def search(first: float, tried: Callable[[float], Mapping[str, Any]]) -> float:
    """The rate with the best score on the rows that choose, of equals the one with the lower loss; the grid grows while that is at its edge."""
    rates = [first / FACTOR, first, first * FACTOR]
    scores = {rate: tried(rate) for rate in rates}
    for _ in range(FURTHER + 1):
        best = max(rates, key=lambda rate: (scores[rate]["accuracy"] or 0.0, -scores[rate]["loss"]))
        if best not in (rates[0], rates[-1]) or len(rates) == 3 + FURTHER:
            break
        further = best / FACTOR if best == rates[0] else best * FACTOR
        scores[further] = tried(further)
        rates = sorted([*rates, further])
    return best


def job(task: str, arm: str, options: argparse.Namespace, result_of: Callable[[float, int, bool], Result]) -> list[Result]:
    """The search of a method and then its seeds, whose results are returned. `result_of` has rate, seed, and whether it is for the search."""

    def tried(rate: float) -> Mapping[str, Any]:
        found = result_of(rate, SEARCH_SEED, True)
        return dict(found["scores"][kept(found)]["selection"])

    rate = search(ARMS[arm].for_task(task), tried) if arm != "base" else 0.0
    return [result_of(rate, seed, False) | {"rate": rate, "seed": seed} for seed in range(options.seeds)]


def _known(
    known: Mapping[str, Result], task: str, arm: str, options: argparse.Namespace, rate: float, seed: int, searching: bool
) -> Result:
    return known[case_of(task, arm, rate, seed, options, searching)]


def by_measuring(task: str, arm: str, options: argparse.Namespace, known: Mapping[str, Result]) -> None:
    """Do what is not known yet, and print each result when it is there."""

    def result_of(rate: float, seed: int, searching: bool) -> Result:
        case = case_of(task, arm, rate, seed, options, searching)
        if case in known:
            return known[case]
        result = measure(task, arm, rate, seed, options, searching)
        print(json.dumps({"case": case, "result": result}), flush=True)
        return result

    job(task, arm, options, result_of)


def case_of(task: str, arm: str, rate: float, seed: int, options: argparse.Namespace, searching: bool) -> str:
    """What a result goes by in a file of results."""
    size = {"rows": rows_of(task, options, searching), "cycles": options.cycles, "tiny": options.tiny}
    return json.dumps({"task": task, "method": arm, "rate": float(f"{rate:.4g}"), "seed": seed, "searching": searching} | size)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(), help="directory with the files of SST-2, MRPC and QNLI")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(ARMS), default=None, help="only these, in every task")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[str(DEFAULT_ROWS)],
        metavar="N",
        help="training rows of all agents together, or TASK=N; a search has half of them",
    )
    parser.add_argument("--cycles", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3, help="of who has which rows, of the head, and of the order of rows")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, help="file that every run's result is added to; runs that are in it are not repeated")
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers, two steps: whether it runs at all")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each run to this file")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a picture to this file: quality against bytes, and against state")
    parser.add_argument("--one", nargs=2, metavar=("TASK", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = read_results(options.results)
    if options.one:
        by_measuring(options.one[0], options.one[1], options, known)
        return
    cases = [(t, a) for t in options.tasks for a in options.methods or [a for a, arm in ARMS.items() if t in arm.only]]
    adding = threading.Lock()
    with ThreadPoolExecutor(options.processes) as pool:
        for found in pool.map(lambda case: _child(case[0], case[1], options, adding), cases):
            known |= found
    runs = {(task, arm): job(task, arm, options, partial(_known, known, task, arm, options)) for task, arm in cases}
    figures = report(runs)
    if options.csv is not None:
        write_csv(options.csv, runs)
    if options.svg is not None:
        options.svg.write_text(drawn(figures, cases), encoding="utf-8")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def read_results(file: Path | None) -> dict[str, Result]:
    lines = file.read_text().splitlines() if file is not None and file.exists() else []
    return {line["case"]: line["result"] for line in map(json.loads, lines)}


def _child(task: str, arm: str, options: argparse.Namespace, adding: threading.Lock) -> dict[str, Result]:
    """A method in a task, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.methods", "--one", task, arm]
    command += ["--data", str(options.data), "--cycles", str(options.cycles), "--seeds", str(options.seeds), "--rows", *options.rows]
    command += (["--tiny"] if options.tiny else []) + (["--results", str(options.results)] if options.results else [])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    found: dict[str, Result] = {}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment) as child,
    ):
        for line in child.stdout or ():
            made = json.loads(line)
            found[made["case"]] = made["result"]
            with adding:
                if options.results is not None:
                    with options.results.open("a") as file:
                        file.write(line)
                shown = made["result"]["scores"]["average"]["selection"]
                print(f"{made['case']}: {shown}, {made['result']['seconds']:.0f} s", flush=True)
        if child.wait():
            said.seek(0)
            raise RuntimeError(f"{task}, {arm} failed:\n{said.read()}")
    return found


def row_of(result: Result) -> dict[str, float]:
    """The figures of one run by the names of `COLUMNS`."""
    scores = {name: found["reported"] for name, found in result["scores"].items()}
    percent = {f"{name}_accuracy": 100 * found["accuracy"] for name, found in scores.items() if found["accuracy"] is not None}
    chosen = scores[kept(result)]
    row = {"loss": chosen["loss"], "last_loss": scores["last"]["loss"], "average_loss": scores["average"]["loss"]} | {
        name: result[name] for name in COLUMNS if name in result
    }
    if chosen["accuracy"] is not None:
        row |= percent | {name: 100 * chosen[name] for name in ("accuracy", "macro_f1", "majority")}
        row["accuracy_gain"] = percent["average_accuracy"] - percent["last_accuracy"]
        calibrated = result["scores"][kept(result)].get("calibrated") or chosen
        row |= {"calibrated_accuracy": 100 * calibrated["accuracy"], "calibrated_loss": calibrated["loss"]}
    row["loss_gain"] = row["last_loss"] - row["average_loss"]
    shares = {"state_share": 100 * result["state"] / result["full_state"], "bytes_share": 100 * result["bytes"] / result["fedavg_bytes"]}
    return row | shares


def report(runs: Mapping[tuple[str, str], Sequence[Result]]) -> dict[str, float]:
    """Print a table, and return its figures by name: mean and standard deviation over the seeds."""
    figures: dict[str, float] = {}
    heading = ("accuracy %", "macro-F1 %", "held-out loss", "average gains", "lowers loss by", "head calibrated", "its loss")
    print(
        f"\n{'task':12} {'method':28} "
        + " ".join(f"{h:>15}" for h in heading)
        + "  kept   rate  state MB (of full)      MB (of FedAvg) serial   s seeds"
    )
    for (task, arm), found in runs.items():
        rows = [row_of(result) for result in found]
        mean: dict[str, float] = {}
        for name in (name for name in COLUMNS if name in rows[0]):
            values = [row[name] for row in rows]
            mean[name] = statistics.mean(values)
            figures |= {f"{task}/{arm}/{name}": mean[name], f"{task}/{arm}/{name}_sd": statistics.stdev(values) if len(values) > 1 else 0.0}
        figures |= {f"{task}/{arm}/rate": found[0]["rate"], f"{task}/{arm}/seeds": len(found)}
        averaged = sum(kept(result) == "average" for result in found)
        figures[f"{task}/{arm}/average_kept_in"] = averaged
        cells = [_cell(figures, f"{task}/{arm}/{name}") for name in SHOWN]
        print(
            f"{task:12} {arm:28} " + " ".join(f"{cell:>15}" for cell in cells) + f" {averaged:2}/{len(found)} {found[0]['rate']:7.1e}"
            f" {mean['state'] / 1e6:8.1f} ({mean['state_share']:5.1f} %) {mean['bytes'] / 1e6:9.1f} ({mean['bytes_share']:5.1f} %)"
            f" {mean['serial']:5.0f} {mean['seconds']:5.0f} {len(found)}"
        )
    for task, arm in ((t, "base") for t in TASKS if f"{t}/base/majority" in figures):
        print(f"{task:12} {'majority class':28} {figures[f'{task}/{arm}/majority']:15.2f}")
    tasks = [t for t in TASKS if TASKS[t].labels and any(task == t for task, _ in runs)]
    for arm in dict.fromkeys(arm for _, arm in runs):
        if len(tasks) > 1 and all((task, arm) in runs for task in tasks):
            figures |= {
                f"mean/{arm}/{n}": statistics.mean(figures[f"{t}/{arm}/{n}"] for t in tasks) for n in ("accuracy", "macro_f1", "loss")
            }
            shown = ", ".join(f"{name} {figures[f'mean/{arm}/{name}']:.3f}" for name in ("accuracy", "macro_f1", "loss"))
            print(f"mean of {', '.join(tasks)}: {arm:28} {shown}")
    return figures


def _cell(figures: Mapping[str, float], name: str) -> str:
    if name not in figures:
        return "–"
    digits = 4 if "loss" in name.rpartition("/")[2] else 2
    return f"{figures[name]:.{digits}f} ± {figures[f'{name}_sd']:.{digits}f}"


def write_csv(path: Path, runs: Mapping[tuple[str, str], Sequence[Result]]) -> None:
    """A row for each run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("task", "method", "seed", "rate", "kept", *COLUMNS))
        writer.writeheader()
        for (task, arm), found in runs.items():
            for result in found:
                named = {"task": task, "method": arm, "seed": result["seed"], "rate": result["rate"], "kept": kept(result)}
                writer.writerow(named | row_of(result))


def drawn(figures: Mapping[str, float], cases: Sequence[tuple[str, str]]) -> str:
    """SVG: the mean accuracy over the tasks that all methods have (or the loss of the language model), against bytes and against state."""
    arms = [arm for arm in dict.fromkeys(arm for _, arm in cases) if arm != "base"]
    labelled = any(TASKS[task].labels for task, _ in cases)
    tasks = [task for task in dict.fromkeys(task for task, _ in cases) if bool(TASKS[task].labels) == labelled]
    panels: dict[str, list[Point]] = {"bytes_share": [], "state_share": []}
    for arm in arms:
        if not all(f"{task}/{arm}/loss" in figures for task in tasks):
            continue
        mean = {n: statistics.mean(figures[f"{t}/{arm}/{n}"] for t in tasks) for n in (*panels, "accuracy" if labelled else "loss")}
        for name, points in panels.items():
            points.append(Point(arm, ARMS[arm].family, mean[name], mean["accuracy" if labelled else "loss"]))
    up = f"{'accuracy, %' if labelled else 'held-out loss, nats'}: {', '.join(tasks)}"
    titles = {"bytes_share": "bytes moved, % of FedAvg's", "state_share": "state of an agent, % of full tuning's"}
    return scatter([(titles[name], points) for name, points in panels.items()], up)


if __name__ == "__main__":
    main()
