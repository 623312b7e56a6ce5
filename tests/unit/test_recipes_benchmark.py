"""`benchmarks.recipes` ends a run as the product does, and counts what is below its anchors by more than chance makes."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recipes
from fedcybgd.coordinator.domain.recipe import RecipeTask
from tests.support.models import WORDS


def rows(path: Path, labels: int | None, number: int) -> Path:
    made: list[dict[str, Any]] = [{"text": f"{WORDS[i % 7]} {WORDS[i % 3]}"} for i in range(number)]
    if labels is not None:
        made = [row | {"label": i % labels} for i, row in enumerate(made)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.mark.parametrize(("task", "checkpoint", "labels"), [("text-classification", "bert", 3), ("causal-lm", "llama", None)])
def test_a_run_of_a_recipe_ends_with_one_of_its_candidates(
    task: RecipeTask, checkpoint: str, labels: int | None, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(checkpoint)
    monkeypatch.setattr(recipes, "TASKS", {"text": {"labels": labels}})
    monkeypatch.setattr(recipes, "LANGUAGE", ("text",) if labels is None else ())
    held_out, unseen = rows(tmp_path / "held-out.jsonl", labels, 12), rows(tmp_path / "unseen.jsonl", labels, 9)
    paths = [rows(tmp_path / f"agent-{i}.jsonl", labels, 8) for i in range(2)]
    values = recipes.run_file_of("text", model, held_out, 16, 0, {"schedule": {"cycles": 1}, "train": {"learning_rate": 1e-3}})
    found = recipes.ended(values, model, paths, held_out, unseen, tmp_path / "run", told=True)
    assert found["kept"] in ("last", "average", "best")
    assert found["measure"] == ("loss" if labels is None else "accuracy")
    assert (found["error"] is None) == (labels is None), "of one window of text there is no error"
    assert (found["majority"] is None) == (labels is None)
    assert found["rounds"] > 0
    assert len(found["curve"]) >= 2


def test_what_is_below_an_anchor_is_told_from_chance(capsys: pytest.CaptureFixture[str]) -> None:
    run = {"score": 60.0, "base": 50.0, "majority": 61.0, "error": 2.0, "measure": "accuracy", "mb": 1.0}
    text = {"score": 2.5, "base": 2.4, "majority": None, "error": 0.01, "measure": "loss", "mb": 1.0}
    figures = recipes.report({"few": [run, run | {"score": 58.0}, run | {"score": 70.0}], "plays": [text, text | {"score": 2.0}]})
    assert (figures["few_below"], figures["few_below_by_chance"]) == (1, 1)
    assert (figures["plays_below"], figures["plays_below_by_chance"]) == (1, 0)
    assert "few" in capsys.readouterr().out
