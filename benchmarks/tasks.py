"""Small public tasks for MiniLM and stories260K, as rows that agents can have: from a directory with the files that `FILES` names.

A row of a classification has `text`, `label` and perhaps `text_pair`; one of a language model `text`, or `prompt` and `completion`.
"""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Disjoint: what agents train on, what selects a model, and what nothing but the last figure has seen."""

    train: list[Row]
    selection: list[Row]
    unseen: list[Row]


def read(data: Path, name: str) -> list[Row]:
    with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def sst2(row: Row) -> Row:
    return {"text": row["sentence"], "label": int(row["label"])}


def pair(row: Row) -> Row:
    return {"text": row["sentence1"], "text_pair": row["sentence2"], "label": int(row["label"])}


def alike(row: Row) -> Row:
    """STS-B as two labels: whether the likeness of two sentences, 0 to 5, is above the middle of the scale."""
    return {"text": row["sentence1"], "text_pair": row["sentence2"], "label": int(float(row["label"]) > 2.5)}


def intent(row: Row) -> Row:
    return {"text": row["text"], "label": int(row["label"])}


def problem(row: Row) -> Row:
    return {"prompt": row["question"], "completion": row["answer"]}


FILES: dict[str, tuple[str, str, Callable[[Row], Row]]] = {
    "sst2": ("glue_sst2_train", "glue_sst2_dev", sst2),
    "mrpc": ("glue_mrpc_train", "glue_mrpc_dev", pair),
    "qnli": ("glue_qnli_train9k", "glue_qnli_dev", pair),
    "stsb": ("glue_stsb_train", "glue_stsb_dev", alike),
    "banking77": ("banking77_train", "banking77_test", intent),
    "gsm8k": ("gsm8k_train", "gsm8k_test", problem),
}
"""task → training file, file of the figure, what a row becomes"""


def rows(task: str, data: Path, seed: int, train: int, selection: int, unseen: int, labels: int | None = None) -> Rows:
    """So many rows of each, or as many as there are, no text in two of them; drawn by `seed`, the unseen ones alike for all seeds.

    `labels`: rows of the first so many alone.
    """
    of_training, of_figure, made = FILES[task]
    ours, theirs = ([made(row) for row in read(data, name)] for name in (of_training, of_figure))
    if labels is not None:
        ours, theirs = ([row for row in part if row["label"] < labels] for part in (ours, theirs))
    random.Random(0).shuffle(theirs)
    figure = theirs[:unseen]
    told = {_words(row) for row in figure}
    ours = list({_words(row): row for row in ours if _words(row) not in told}.values())
    random.Random(seed).shuffle(ours)
    return Rows(ours[selection : selection + train], ours[:selection], figure)


def _words(row: Row) -> tuple[str, ...]:
    return tuple(str(value).strip().lower() for field, value in row.items() if field != "label")


def write(path: Path, found: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    return path


def dealt(found: Sequence[Row], agents: int, folder: Path) -> list[Path]:
    """A file for each agent, with every so-manieth row."""
    return [write(folder / f"agent-{number}.jsonl", found[number::agents]) for number in range(agents)]
