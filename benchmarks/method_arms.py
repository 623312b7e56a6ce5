"""What `benchmarks.methods` compares: its tasks and their rows, and the run file of each method.

A cycle is the same amount of training in every method: each of six agents goes once over its rows (or makes the same number of steps).
"""

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.banking77 import LABELS, ROWS

AGENTS, SELECTED, REPORTED = 6, 600, 1200
"""Held-out rows are the same for all methods and seeds: `SELECTED` choose learning rates and versions, `REPORTED` are what is told."""
STEPS = 480
"""of the language model, of all agents and cycles together"""


@dataclass(frozen=True)
class Task:
    labels: int | None
    """None: a language model"""
    files: tuple[str, ...] = ()
    """training rows, then rows that are held out before any others; in the directory `--data`"""
    fields: tuple[str, ...] = ("sentence",)
    max_length: int = 64
    batch_size: int = 16
    head_rate: float = 2e-3


TASKS: dict[str, Task] = {
    "sst2": Task(2, ("glue_sst2_train.jsonl.gz", "glue_sst2_dev.jsonl.gz"), batch_size=32),
    "banking77": Task(LABELS, (str(ROWS), str(ROWS.with_name("banking77_test.jsonl.gz"))), ("text",), head_rate=5e-3),
    "mrpc": Task(2, ("glue_mrpc_train.jsonl.gz", "glue_mrpc_dev.jsonl.gz"), ("sentence1", "sentence2"), max_length=96),
    "qnli": Task(2, ("glue_qnli_train9k.jsonl.gz", "glue_qnli_dev.jsonl.gz"), ("sentence1", "sentence2"), max_length=96),
    "shakespeare": Task(None, max_length=128, batch_size=8),
}
EQUAL_RANK = {True: 40, False: 5}
"""Rank at which adapters beside all linear matrices take as much state as a visit of the block cycle: MiniLM with its pooler and head; stories260K."""


@dataclass(frozen=True)
class Arm:
    rate: float
    """the middle of the first three that are tried"""
    family: str
    sections: Mapping[str, Any]
    language_rate: float = 3e-3
    """the same for the language model"""
    only: tuple[str, ...] = tuple(TASKS)
    """the tasks that it runs in by itself"""
    head_factor: float = 1.0
    """on the rate of pooler and head, which is the same for all others"""
    parts: int = 1
    """Cycles of its schedule that have, together, as many visits as there are agents: `AGENTS` where a cycle has one visit"""

    def for_task(self, task: str) -> float:
        return self.rate if TASKS[task].labels else self.language_rate


WAVES = {"wave": 3, "damping": 0.4}
ROUNDED = {"policy": "int8", "trained": "int8"}
CLASSIFICATION = tuple(name for name, task in TASKS.items() if task.labels)
ARMS: dict[str, Arm] = {
    "base": Arm(0.0, "untrained", {}),
    "head": Arm(2e-3, "head only", {"schedule": {"blocks": ["pooler"], "always": ["head"]}}, only=CLASSIFICATION, parts=AGENTS),
    "blocks": Arm(6e-4, "block cycle", {"schedule": WAVES, "compression": ROUNDED}, language_rate=6e-3),
    "blocks exact": Arm(6e-4, "block cycle", {"schedule": WAVES}, language_rate=6e-3, only=()),
    "blocks fixed": Arm(6e-4, "block cycle", {"schedule": {**WAVES, "agents": "fixed"}}, language_rate=6e-3, only=()),
    "blocks fixed, int4": Arm(
        6e-4, "block cycle", {"schedule": {**WAVES, "agents": "fixed"}, "compression": {"policy": "int4"}}, language_rate=6e-3, only=(),
    ),
    "blocks of two": Arm(6e-4, "block cycle", {"schedule": {**WAVES, "layers_per_block": 2}}, language_rate=6e-3, only=(), parts=2),
    "blocks expanded": Arm(
        6e-4, "block cycle",
        {"schedule": WAVES, "compression": ROUNDED, "corrections": {"rank": 4, "learning_rate": 2e-3}}, language_rate=6e-3, only=(),
    ),
    "strict": Arm(3e-4, "block cycle", {}),
    "strict fixed": Arm(3e-4, "block cycle", {"schedule": {"agents": "fixed"}}, only=("sst2",)),
    "whole": Arm(2e-4, "whole models", {"method": "whole"}),
    "adapters r8": Arm(2e-3, "adapters", {"method": "adapters", "adapters": {"rank": 8, "alpha": 16}}, language_rate=1e-2),
    "adapters r16": Arm(2e-3, "adapters", {"method": "adapters", "adapters": {"rank": 16, "alpha": 32}}, language_rate=1e-2),
    "adapters equal": Arm(1e-3, "adapters", {"method": "adapters", "adapters": {"rank": None, "alpha": None}}, language_rate=1e-2),
    "adapters handed": Arm(
        1e-3, "adapters", {"method": "adapters", "adapters": {"rank": 8, "alpha": 16, "combine": "handed"}}, language_rate=1e-2, parts=AGENTS,
    ),
    "adapters handed, embeddings": Arm(
        1e-3, "adapters",
        {"method": "adapters", "adapters": {"rank": 8, "alpha": 16, "combine": "handed"}, "schedule": {"always": ["embeddings", "norm"]}},
        language_rate=1e-2, only=("shakespeare",), parts=AGENTS,
    ),
    "whole, faster head": Arm(8e-4, "whole models", {"method": "whole"}, only=(), head_factor=3.0),
    "adapters equal, faster head": Arm(
        4e-3, "adapters", {"method": "adapters", "adapters": {"rank": None, "alpha": None}}, only=(), head_factor=3.0,
    ),
}  # fmt: skip
"""`adapters equal`: of the rank that takes the state of a block cycle's visit. Deltas are int8, and frozen blocks too; under `whole` nothing is frozen."""


def spec_of(task: str, arm: str, rate: float, seed: int, cycles: int, tiny: bool = False) -> dict[str, Any]:
    """The run file of one run; `tiny` is for a model whose matrices are too small for the ranks."""
    what, method = TASKS[task], ARMS[arm]
    schedule = {"cycles": cycles * method.parts, "agents": "rotating"}
    train: dict[str, Any] = {"batch_size": what.batch_size, "learning_rate": rate or 1e-3, "weight_decay": 0.01}
    spec: dict[str, Any] = {"name": task, "model": "m", "task": {"kind": "causal-lm", "max_length": what.max_length}, "seed": seed}
    if what.labels is None:
        schedule |= {"blocks": ["all"], "always": ["norm"]}
        train |= {"steps": 1 if tiny else max(1, STEPS // (AGENTS * cycles)), "weight_decay": 0.0}
    else:
        spec["task"] = {"kind": "text-classification", "labels": what.labels, "max_length": what.max_length}
        schedule |= {"blocks": ["layers"], "always": ["pooler", "head"]}
        train |= {
            "epochs": 1, "learning_rate_decay": 0.75 ** (1 / method.parts), "always_learning_rate": rate if arm == "head" else what.head_rate * method.head_factor,
            "always_learning_rate_decay": 0.6 ** (1 / method.parts),
        }  # fmt: skip
    averages = method.sections.get("method")
    if averages:
        schedule.pop("agents")
        schedule["blocks"] = ["all"] if averages == "whole" else ["adapters"]
    spec |= {"schedule": schedule | method.sections.get("schedule", {}), "train": train, "delta": {"codec": "int8"}}
    spec["compression"] = method.sections.get("compression", {"policy": "none" if averages == "whole" else "int8"})
    if averages:
        spec["method"] = averages
    if "corrections" in method.sections:
        spec["corrections"] = method.sections["corrections"]
    if "adapters" in method.sections:
        rank = 2 if tiny else method.sections["adapters"]["rank"] or EQUAL_RANK[what.labels is not None]
        spec["adapters"] = {**method.sections["adapters"], "rank": rank, "alpha": 2 * rank}
    return spec


def write_rows(task: str, data: Path, folder: Path, seed: int, rows: int) -> tuple[list[Path], Path, Path]:
    """A file for each agent, the held-out rows that choose, and those that are reported. No text is in two of them."""
    folder.mkdir(parents=True)
    what = TASKS[task]
    if what.labels is None:
        from examples.demo.tasks import shakespeare

        _, partitions = shakespeare(folder)
        held_out = [json.loads(line) for line in (folder / "held-out.jsonl").read_text().splitlines()]
        random.Random(0).shuffle(held_out)
        random.Random(seed).shuffle(partitions)
        chosen = len(held_out) // 3
    else:
        train, held_out = (_read(data / file, what.fields) for file in what.files)
        for part in (train, held_out):
            random.Random(0).shuffle(part)
        missing = max(0, SELECTED + REPORTED - len(held_out))
        held_out = [*held_out, *train[:missing]][: SELECTED + REPORTED]
        told = {_words(row) for row in held_out}
        train = [row for row in train[missing:] if _words(row) not in told]
        if len(train) < rows:
            raise SystemExit(f"{task} has {len(train):,} rows to train on, which are fewer than {rows:,}")
        random.Random(seed).shuffle(train)
        partitions = [_write(folder / f"agent-{i}.jsonl", train[:rows][i::AGENTS]) for i in range(AGENTS)]
        random.Random(1).shuffle(held_out)
        chosen = SELECTED
    return partitions, _write(folder / "selection.jsonl", held_out[:chosen]), _write(folder / "reported.jsonl", held_out[chosen:])


def _read(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found = [{**dict(zip(("text", "text_pair"), (row[name] for name in fields), strict=False)), "label": int(row["label"])} for row in rows]
    return list({_words(row): row for row in found}.values())


def _words(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["text"].strip().lower(), row.get("text_pair", "").strip().lower()


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
