"""A run of questions: its run file, its plan, and how its scores are compared and told."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.coordinator.commands.predict import predict
from fedcybgd.coordinator.domain.candidates import RunCandidate, is_better, kept
from fedcybgd.coordinator.domain.model_card import model_card
from fedcybgd.coordinator.domain.run_file import RunFile, RunFileInvalid, parse_run_file
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.planning.shapes import BlockShape, blocks_of_run
from fedcybgd.local.rows import TrialRows
from fedcybgd.local.split import Split
from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.contract.score_words import cells, kind_of, measures
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.tables import read_examples
from fedcybgd.shared.models.blocks import partition
from fedcybgd.shared.models.prediction import spec_of
from tests.support.families import FAMILIES, QUESTIONS, config_of
from tests.support.questions import easy, question, questions
from tests.unit.test_comparison import run, said
from tests.unit.test_comparison import score as of_labels
from tests.unit.test_model_card import facts, run_file

RUN = "name: r\nmodel: m\ntask: {kind: extractive-qa%s}\n"


def score(f1: float, loss: float = 1.0) -> Score:
    return Score(loss=loss, accuracy=None, f1=f1, f1_error=0.01, exact_match=f1 / 2, exact_match_error=0.02, rows=100, seconds=1.0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (RUN % ", labels: 3", "line 3: task: extractive-qa has no labels"),
        (RUN % "" + "train: {label_skew: mask}\n", "train.label_skew: extractive-qa has no labels"),
        (RUN % "" + "schedule: {head_average: by_label}\n", "schedule.head_average: extractive-qa has no labels"),
        (RUN % "" + "schedule: {head_start: class_means, always: [head]}\n", "schedule.head_start: class_means"),
    ],
)
def test_what_labels_are_for_means_nothing(more: str, message: str) -> None:
    with pytest.raises(RunFileInvalid, match=message):
        parse_run_file(more)
    plain = parse_run_file(RUN % "")
    assert (plain.label_skew, plain.head_average, plain.task.num_labels) == ("none", "damped", None)


@pytest.mark.parametrize("family", QUESTIONS)
def test_what_is_planned_with_is_what_the_model_has(family: str) -> None:
    base = FAMILIES[family.removesuffix("-questions")][1](3)
    spec: dict[str, Any] = {"name": "r", "model": "m", "task": {"kind": "extractive-qa"}, "schedule": {"always": ["head"]}}
    added = [BlockShape(b.name, b.kind, {t.name: t.shape for t in b.tensors}) for b in partition(base)]
    planned, _ = blocks_of_run(RunFile.model_validate(spec), config_of(base), added)
    made = partition(QUESTIONS[family][1](3))
    assert {b.name: b.tensors for b in planned} == {b.name: {t.name: t.shape for t in b.tensors if t.is_parameter} for b in made}


def test_the_better_score_is_the_one_with_the_higher_f1() -> None:
    assert is_better(score(0.3, loss=2.0), score(0.2, loss=1.0))
    assert not is_better(score(0.2, loss=1.0), score(0.3, loss=2.0))
    assert kept({RunCandidate.LAST: score(0.2), RunCandidate.BEST: score(0.4)}) is RunCandidate.BEST
    views = [of_labels(2, None).model_copy(update=score(f1).model_dump(include={"f1", "f1_error"})) for f1 in (0.30, 0.31)]
    assert "as far apart as another choice" in said(*(run(name, view) for name, view in zip("ab", views, strict=True)))


def test_scores_are_told_as_f1_and_exact_match() -> None:
    assert measures(kind_of([score(0.5)])) == ("F1", "exact match")
    assert cells(score(0.5), "answers") == ["50.00% ± 1.00", "25.00% ± 2.00"]
    assert score(0.5).in_words() == "F1 50.00%, loss 1.0000"
    card = facts(run_file(task={"kind": "extractive-qa"}), (0, score(0.1)), (2, score(0.5)))
    text = model_card(card)
    assert "| after rounds | F1 | exact match | loss |" in text
    assert "| 2 | 50.00% ± 1.00 | 25.00% ± 2.00 | 1.0000 |" in text
    assert "pipeline_tag: question-answering" in text
    assert 'AutoModelForQuestionAnswering.from_pretrained(".")' in text


def test_rows_that_are_dealt_out_are_read_as_the_same_examples(tmp_path: Path) -> None:
    spec, given = (
        TaskSpec(task="extractive-qa", max_length=16),
        questions(tmp_path / "rows.jsonl", [*easy(5), question("why", "my card", None)]),
    )
    portions = TrialRows(given, spec, {}).split(Split("iid"), None, 2, 0, tmp_path / "dealt")
    dealt = [row for portion in portions for row in read_examples(portion.path, spec, {})]
    assert sorted(map(str, dealt)) == sorted(map(str, read_examples(given, spec, {})))


def test_an_export_that_finds_answers_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of(QUESTIONS["bert-questions"][1](1))))
    assert (spec_of(tmp_path).task, spec_of(tmp_path).num_labels) == ("extractive-qa", None)
    with pytest.raises(Invalid, match="writes no text"):
        predict(str(tmp_path), questions(tmp_path / "rows.jsonl", easy(1)), new_tokens=3)
