"""Label skew is noticed by what training really makes of it: where agents tell their labels, and where nothing but the held-out rows shows it."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reference
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.domain import label_skew

LABELS, AGENTS = 6, 3
TOPICS, ENDS = ["card", "money", "bank", "pin", "transfer", "pay"], ["lost", "stolen", "new", "working"]


def write(path: Path, labels: list[int]) -> Path:
    path.write_text(
        "".join(
            json.dumps({"text": f"my {TOPICS[label]} {TOPICS[label]} is {ENDS[number % 4]}", "label": label}) + "\n"
            for number, label in enumerate(labels)
        )
    )
    return path


def trained(bert: Path, folder: Path, disjoint: bool, **train: Any) -> tuple[reference.Reference, list[Any]]:
    """Three cycles over the layers, agent by agent; the run and its scores after each round. Disjoint: two labels each, of which no other has a row."""
    of = [[2 * agent, 2 * agent + 1] if disjoint else list(range(LABELS)) for agent in range(AGENTS)]
    paths = [write(folder / f"{agent}.jsonl", labels * (24 // len(labels))) for agent, labels in enumerate(of)]
    held_out = write(folder / "held-out.jsonl", list(range(LABELS)) * 4)
    run = reference.begin(folder, bert, {
        "name": "r", "model": "m", "task": {"kind": "text-classification", "labels": LABELS, "max_length": 8},
        "schedule": {"cycles": 3, "blocks": ["layers"], "always": ["pooler", "head"]},
        "train": {"steps": 25, "batch_size": 8, "learning_rate": 5e-3, "precision": "float32", **train}, "seed": 1,
    })  # fmt: skip
    run.tell_labels = True
    scores = [run.evaluate(held_out)]
    shared = Visitor("cpu")
    reference.run(run, paths, folder / "scratch", visitors=[shared] * AGENTS, after_round=lambda _: scores.append(run.evaluate(held_out)))
    return run, scores


def forgotten(scores: list[Any]) -> bool:
    return any(
        label_skew.forgets([score.loss for score in scores[: upto + 1]], scores[upto].labels_held_out, scores[upto].labels_never_right)
        for upto in range(1, len(scores))
    )


@pytest.mark.parametrize("disjoint", [True, False], ids=["disjoint", "alike"])
def test_disjoint_labels_are_noticed_and_labels_alike_are_not(bert: Path, tmp_path: Path, disjoint: bool) -> None:
    run, scores = trained(bert, tmp_path, disjoint, label_skew="none")
    told = [metrics.label_counts for metrics in run.metrics if metrics.label_counts is not None]
    assert len(told) == len(run.metrics)
    assert (label_skew.divergence(told[:AGENTS]) >= label_skew.UNLIKE) == disjoint, "by what agents tell"
    assert forgotten(scores) == disjoint, [(score.loss, score.labels_never_right) for score in scores]
