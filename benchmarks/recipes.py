"""Whether the run files that `fedcoord init` writes are safe to start from: `python -m benchmarks.recipes --data DIR`.

Tasks of different size (`TASKS`), MiniLM (22.7 M parameters) and stories260K (0.26 M), six agents, several seeds (of the head, of who has which rows, of
the order of rows). The values are of the function that `fedcoord init` calls, from the rows that select the model (`evaluate.held_out`); the run ends as
the run file says: with its last version, the average, or the best before. The figure is of other rows, which nothing has seen before, and stands beside

majority   saying the label always that most of these rows have
as trained the same without the calibrated head with which classifications end
base       the model before any training: with a fresh head, as the run scores it after 0 rounds
head       where `--head` asks for it: the same recipe, as many rounds of the same agents, for pooler and head alone

`--data` is a directory with the files that benchmarks/tasks.py names. One thread.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import images, tasks
from benchmarks.report import arguments

AGENTS = 6
TASKS: dict[str, dict[str, Any]] = {
    "sst2-300": {"task": "sst2", "train": 300, "selection": 100, "unseen": 400},
    "mrpc": {"task": "mrpc", "train": 600, "selection": 150, "unseen": 400},
    "shakespeare": {},
    "banking77-10": {"task": "banking77", "train": 400, "selection": 150, "unseen": 400, "labels": 10},
    "qnli": {"task": "qnli", "train": 600, "selection": 150, "unseen": 400},
    "gsm8k": {"task": "gsm8k", "train": 600, "selection": 100, "unseen": 200},
    "stsb-2": {"task": "stsb", "train": 600, "selection": 150, "unseen": 400},
    "banking77": {"task": "banking77", "train": 1500, "selection": 300, "unseen": 500},
    "xquad": {"train": 800},
    "mnist": {},
    "cifar10": {},
    "sst2-2000": {"task": "sst2", "train": 2000, "selection": 300, "unseen": 500},
    "sst2-6000": {"task": "sst2", "train": 6000, "selection": 500, "unseen": 872},
    "sst2-12000": {"task": "sst2", "train": 12000, "selection": 500, "unseen": 872},
}
LANGUAGE, QUESTIONS, IMAGES = ("shakespeare", "gsm8k"), "xquad", ("mnist", "cifar10")
OF_THE_END = ("average_versions", "keep_best", "calibrate", "stop")
"""Sections that a run in one process is not told of: what they ask for is done here."""


def rows_of(name: str, data: Path, folder: Path, seed: int) -> tuple[list[Path], Path, Path]:
    """A file for each agent, the held-out one, and the one of the figure."""
    if name == "shakespeare":
        from examples.demo.tasks import shakespeare

        _, paths = shakespeare(folder)
        lines = (folder / "held-out.jsonl").read_text().splitlines(keepends=True)
        for file, part in (("held-out.jsonl", lines[0::2]), ("unseen.jsonl", lines[1::2])):
            (folder / file).write_text("".join(part))
        turned = seed % len(paths)
        return [*paths[turned:], *paths[:turned]], folder / "held-out.jsonl", folder / "unseen.jsonl"
    if name == QUESTIONS:
        return _questions(data, folder, seed)
    if name in IMAGES:
        return images.write_rows(data, folder / "images", name, seed, None)
    found = tasks.rows(data=data, seed=seed, **TASKS[name])
    files = [tasks.write(folder / f"{what}.jsonl", rows) for what, rows in (("held-out", found.selection), ("unseen", found.unseen))]
    return tasks.dealt(found.train, AGENTS, folder), files[0], files[1]


def _questions(data: Path, folder: Path, seed: int) -> tuple[list[Path], Path, Path]:
    """Articles of XQuAD: those of the figure and those that select the model are the same for all seeds, the others are dealt out by `seed`."""
    from benchmarks.paper import question_answering

    agents, held_out = question_answering.split(data / question_answering.FILE, seed, 400)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [*agents, held_out[:200], held_out[200:]]
    paths = [
        tasks.write(folder / f"{name}.jsonl", part) for name, part in zip([*range(len(agents)), "held-out", "unseen"], parts, strict=True)
    ]
    return paths[:-2], *paths[-2:]


def run_file_of(name: str, model: Path, held_out: Path, rows: int, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """The run file of a task, as `fedcoord init` would write it; `changes` are tried beside it, by section."""
    from fedcybgd.coordinator.commands import recipe_facts
    from fedcybgd.coordinator.domain.recipe import recipe

    kinds = {**dict.fromkeys(LANGUAGE, "causal-lm"), **dict.fromkeys(IMAGES, "image-classification"), QUESTIONS: "extractive-qa"}
    task: Any = kinds.get(name, "text-classification")
    config = recipe_facts.config_of(model)
    count = recipe_facts.counting(task, model, config)
    facts = recipe_facts.rows_of(held_out, task, {}, TASKS[name].get("labels"), count, held_out.name, rows)
    outline = recipe_facts.model_of("model", config, task, facts.num_labels or None)
    values = recipe(name, task, outline, facts, AGENTS) | {"seed": seed}
    for section, fields in changes.items():
        values[section] = {**values.get(section, {}), **fields}
    return values


def measure(name: str, data: Path, seed: int, changes: dict[str, Any], head: bool, told: bool) -> dict[str, Any]:
    """One run, in this process. `told`: agents tell how many rows of each label they have, as their owners may allow."""
    import torch

    from fedcybgd.shared.files.tables import read_rows

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="recipes-") as scratch:
        folder = Path(scratch)
        paths, held_out, unseen = rows_of(name, data, folder / "rows", seed)
        model = _model(name, folder, seed)
        rows = sum(1 for path in paths for _ in read_rows(path))
        values = run_file_of(name, model, held_out, rows, seed, changes)
        result = ended(values, model, paths, held_out, unseen, folder, told)
        if head:
            from fedcybgd.coordinator.domain.anchor import head_only
            from fedcybgd.coordinator.domain.run_file import checked, said

            anchor = said(head_only(checked(values), result["visited"]))
            result["head"] = ended(anchor, model, paths, held_out, unseen, folder / "head", told)["score"]
        return result


def _model(name: str, folder: Path, seed: int) -> Path:
    from benchmarks.banking77 import minilm
    from examples.demo.tasks import EXAMPLES

    if name in IMAGES:
        return images.model(folder / "model", name, seed)
    return EXAMPLES / "models" / "stories260K" if name in LANGUAGE else minilm()


def ended(values: dict[str, Any], model: Path, paths: list[Path], held_out: Path, unseen: Path, folder: Path, told: bool) -> dict[str, Any]:
    """A run of these values, ended as they say: what it is scored, on the rows that nothing has seen."""
    from benchmarks import device, reference
    from benchmarks.version_averaging import _average
    from fedcybgd.coordinator.domain.averages import averaged_rounds
    from fedcybgd.coordinator.domain.candidates import RunCandidate, is_better, kept
    from fedcybgd.shared.contract.measured import Score

    shared = device.visitor()  # one model in memory, not six
    run = reference.begin(folder, model, {key: value for key, value in values.items() if key not in OF_THE_END})
    run.tell_labels = told
    every = values["evaluate"]["every"]
    often = run.spec.rounds(run.trained) // run.spec.schedule["cycles"] if every == "cycle" else int(every)

    def scored(rows: Path) -> Score:
        return Score.model_validate(run.evaluate(rows).model_dump())

    models, best = [run.blocks], (0, scored(held_out))
    base = scored(unseen)
    curve = [best[1]]

    def look(_: int) -> None:
        nonlocal best
        models.append(run.blocks)
        if run.rounds_done % often == 0:
            curve.append(scored(held_out))
            if not is_better(best[1], curve[-1]):
                best = run.rounds_done, curve[-1]

    reference.run(run, paths, folder / "scratch", visitors=[shared] * len(paths), after_round=look)
    rounds = averaged_rounds(values["average_versions"]["last"], run.rounds_done)
    mean = [_average(run.store, list(of)) for of in zip(*models[-rounds:], strict=True)]
    candidates = {RunCandidate.LAST: models[-1], RunCandidate.AVERAGE: mean, RunCandidate.BEST: models[best[0]]}
    run.blocks = mean
    scores: dict[RunCandidate, Score | None] = {
        RunCandidate.LAST: curve[-1],
        RunCandidate.AVERAGE: scored(held_out),
        RunCandidate.BEST: best[1],
    }
    chosen = kept(scores)
    run.blocks = candidates[chosen]
    before = score = scored(unseen)
    if values.get("calibrate") and (head := _calibrated(run, held_out)) is not None:
        run.blocks = [head if ref.block == head.block else ref for ref in run.blocks]
        score = scored(unseen)
    return {
        "score": _figure(score), "base": _figure(base), "majority": None if score.majority is None else 100 * score.majority,
        "error": score.loss_error if score.quality_error is None else 100 * score.quality_error, "measure": score.measure or "loss",
        "kept": str(chosen), "best_after": best[0], "rounds": run.rounds_done, "macro_f1": score.macro_f1,
        "curve": [_figure(each) for each in curve], "average": _figure(scores[RunCandidate.AVERAGE]), "mb": run.bytes_moved() / 1e6,
        "visited": run.trained, "as_trained": _figure(before), "loss": score.loss, "loss_as_trained": before.loss,
    }  # fmt: skip


def _calibrated(run: Any, held_out: Path) -> Any:
    """The head as it is calibrated on these rows; None: it is left as it was trained."""
    from fedcybgd.coordinator.engine.head_calibration import calibrate

    made = calibrate(run.store, run.scoring(held_out), "last")
    return made.head if made is not None else None


def _figure(score: Any) -> float:
    """Accuracy or F1 in percent; of a language model the loss."""
    return float(score.loss) if score.quality is None else 100 * float(score.quality)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--head", action="store_true", help="train pooler and head alone, too")
    parser.add_argument("--told", action="store_true", help="agents tell how many rows of each label they have (tell_labels)")
    parser.add_argument("--change", default="{}", help='try other values beside the recipe: JSON, as {"train": {"learning_rate": 1e-4}}')
    parser.add_argument("--results", type=Path, help="file that every run's result is added to; runs that are in it are not repeated")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.task or TASKS}
    for seed in range(options.seeds):
        for name, runs in found.items():
            runs.append(_once(name, seed, options))
    figures = report(found)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _once(name: str, seed: int, options: Any) -> dict[str, Any]:
    case = [name, seed, options.change, options.head, options.told]
    for line in options.results.read_text().splitlines() if options.results is not None and options.results.exists() else ():
        if (known := json.loads(line))["case"] == case:
            return dict(known["result"])
    result = measure(name, options.data, seed, json.loads(options.change), options.head, options.told)
    print(f"{name} seed {seed}: {result}", flush=True)
    if options.results is not None:
        with options.results.open("a") as file:
            file.write(json.dumps({"case": case, "result": result}) + "\n")
    return result


def report(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Print a table, and return its figures by name. `below`: runs that are worse than the better anchor by more than their standard error."""
    figures: dict[str, float] = {}
    print(
        f"\n{'task':14} {'score':>16} {'as trained':>16} {'majority':>9} {'base':>16} {'head':>16} {'MB':>8} {'below':>6} {'by chance':>9}"
    )
    for name, runs in found.items():

        def told(key: str, runs: list[dict[str, Any]] = runs) -> str:
            values = [run[key] for run in runs if run.get(key) is not None]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            return f"{statistics.mean(values):.3f} ± {spread:.3f}" if values else "–"

        short = [_short(run) for run in runs]
        below = sum(points > run["error"] for points, run in zip(short, runs, strict=True))
        chance = sum(0 < points <= run["error"] for points, run in zip(short, runs, strict=True))
        print(
            f"{name:14} {told('score'):>16} {told('as_trained'):>16} {told('majority')[:8]:>9} {told('base'):>16} {told('head'):>16} "
            f"{told('mb')[:8]:>8} {below:6} {chance:9}"
        )
        figures |= {
            f"{name}_score": statistics.mean(run["score"] for run in runs), f"{name}_base": statistics.mean(run["base"] for run in runs),
            f"{name}_below": below, f"{name}_below_by_chance": chance,
        }  # fmt: skip
    return figures


def _short(run: dict[str, Any]) -> float:
    """By how much a run is behind the better of majority and base; 0 where it is not."""
    if run["measure"] == "loss":
        return max(0.0, run["score"] - run["base"])
    return max(0.0, max(run["majority"] or 0.0, run["base"]) - run["score"])


if __name__ == "__main__":
    main()
