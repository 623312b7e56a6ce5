"""Runs beside each other: a comparison that says less than it seems to is named, and the picture shows where each run is."""

import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from typing import Any

import pytest

from fedcybgd.client.comparison import scores_of
from fedcybgd.coordinator.commands.compare import drawn, table
from fedcybgd.coordinator.commands.score_table import last_scored, scores
from fedcybgd.shared.contract.comparison import RunScores, doubts
from fedcybgd.shared.contract.measured import Conclusion, Failure, Spent
from fedcybgd.shared.contract.views import EvaluationView, RunView
from tests.unit.test_terminal import printed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SVG = "{http://www.w3.org/2000/svg}"


def score(
    after: int, accuracy: float | None, error: float = 0.01, loss: float = 1.0, tokens: int = 1000, megabytes: int = 3
) -> EvaluationView:
    return EvaluationView(
        after_rounds=after, loss=loss, loss_error=error, accuracy=accuracy, accuracy_error=None if accuracy is None else error,
        majority=None if accuracy is None else 0.31, macro_f1=accuracy, matthews=accuracy, rows=100, seconds=1.0,
        bits_per_byte=2.5 if accuracy is None else None, created_at=NOW,
        spent=Spent(bytes_down=megabytes * 1_000_000, bytes_up=1_000_000, tokens=tokens, seconds=90.0),
    )  # fmt: skip


def run(
    name: str, *made: EvaluationView, memory: int | None = 50_000_000, state: str = "completed", model: str = "minilm", **spec: Any
) -> RunScores:
    spec = {"method": "block-cycle", "seed": 0, "task": {"kind": "text-classification"}, "evaluate": {"digest": "a" * 64}} | spec
    view = RunView.model_construct(name=name, state=state, model=model, spec=spec, rounds_done=4, rounds_total=4)
    return scores_of(view, made, memory, name)


def said(*runs: RunScores) -> str:
    return "; ".join(doubts(runs))


GOOD = run("good", score(0, 0.3), score(4, 0.9))


@pytest.mark.parametrize(("kind", "columns"), [
    ("text-classification", "accuracy"), ("image-classification", "accuracy"), ("extractive-qa", "exact match"), ("causal-lm", "perplexity"),
])  # fmt: skip
def test_runs_without_a_score_have_the_columns_of_their_task(kind: str, columns: str) -> None:
    waiting = [run(name, task={"kind": kind}) for name in ("one", "two")]
    assert columns in printed(lambda terminal: terminal.print(table(waiting)))
    failed = EvaluationView(
        after_rounds=0, loss=None, accuracy=None, rows=0, seconds=0, created_at=NOW, failed=Failure(code="x", message="x")
    )
    assert columns in printed(lambda terminal: terminal.print(table([run("failed", failed, task={"kind": kind})])))


def test_of_runs_that_are_alike_nothing_is_said() -> None:
    assert said(GOOD, run("worse", score(4, 0.8))) == ""


@pytest.mark.parametrize(("other", "why"), [
    (run("near", score(4, 0.88)), "good and near are as far apart as another choice of held-out rows could make them"),
    (run("going", score(4, 0.5), state="running"), "going is running, after 4 of 4 rounds"),
    (run("blind"), "blind has no score"),
    (run("big", score(4, 0.5), model="llama"), "began from different models"),
    (run("elsewhere", score(4, 0.89), evaluate={"digest": "b" * 64}), "scored on different held-out files: their scores cannot be compared"),
    (run("otherwise", score(4, 0.89), task={"kind": "causal-lm"}), "have different tasks"),
    (run("long", score(4, 0.5, tokens=2000)), "long trained on 2,000 tokens and good on 1,000"),
    (run("whole", score(4, 0.5), method="whole"), "fewer than three seeds"),
])  # fmt: skip
def test_what_makes_it_unfair_is_said(other: RunScores, why: str) -> None:
    assert why in said(GOOD, other)
    assert "as far apart" in why or "as far apart" not in said(GOOD, other)


def test_a_run_is_what_it_ended_with_and_not_its_last_version() -> None:
    kept = score(3, 0.9, megabytes=1)
    conclusion = Conclusion(kept="best", rounds=0, best_after=3, scores={"best": kept}, without=["last"])
    view = RunView.model_construct(name="kept", state="completed", model="minilm", spec={}, conclusion=conclusion)
    ended = scores_of(view, [score(0, 0.3), score(4, 0.6, megabytes=9)], None, "kept")
    assert ended.last is not None
    assert ended.last.accuracy == 0.9
    assert ended.last.spent is not None
    assert ended.last.spent.bytes_down == 9_000_000, "what it had cost is all that the run did"


@pytest.mark.parametrize(("kept", "after", "said"), [(None, 4, False), ("last", 4, False), ("best", 3, False), ("average", 4, True)])
def test_labels_are_of_the_model_that_a_run_ended_with_or_it_is_said_that_they_are_not(kept: str | None, after: int, said: bool) -> None:
    view = run("r").view
    if kept is not None:
        view.conclusion = Conclusion(kept=kept, rounds=2, best_after=3, scores={kept: score(4, 0.9)}, without=["last"])
    place, note = last_scored(view, [0, 3, 4])
    assert (place, note is not None) == (after, said)


def test_a_lower_loss_of_language_models_is_the_better_one() -> None:
    near = said(run("a", score(4, None, loss=1.00)), run("b", score(4, None, loss=1.01)))
    far = said(run("a", score(4, None, loss=1.00)), run("b", score(4, None, loss=1.10)))
    assert near.startswith("a and b are as far apart")
    assert far == ""


def test_the_picture_has_every_run_where_it_belongs() -> None:
    picture = ET.fromstring(drawn([GOOD, run("<cheap>", score(4, 0.6, megabytes=1), method="whole", memory=None)]))
    texts = [text.text or "" for text in picture.iter(f"{SVG}text")]
    assert (texts.count("good"), texts.count("<cheap>")) == (2, 1), "its memory is not known"
    places = {
        circle.get("fill"): (float(circle.get("cx", 0)), float(circle.get("cy", 0))) for circle in list(picture.iter(f"{SVG}circle"))[:2]
    }
    (good_x, good_y), (cheap_x, cheap_y) = places.values()
    assert cheap_x < good_x
    assert cheap_y > good_y


def test_the_table_and_the_scores_have_the_errors_and_the_costs() -> None:
    text = printed(lambda terminal: terminal.print(table([GOOD])))
    for part in ("90.00%", "± 1.00", "30.00%", "50 MB", "4 of 4"):
        assert part in text
    failed = EvaluationView(
        after_rounds=9, loss=None, accuracy=None, rows=0, seconds=0, created_at=NOW, failed=Failure(code="skipped", message="x")
    )
    many = [score(0, 0.3), *(score(after, 0.5 + after / 100, tokens=after * 1000) for after in range(1, 13)), failed]
    text = printed(lambda terminal: terminal.print(scores(many)))
    assert "30.00%" in text, "the base model"
    assert "62.00%" in text
    assert "51.00%" not in text
    assert "12,000" in text
    assert "31.00%" in text
    assert "skipped" in text
    assert "2.5000" in printed(lambda terminal: terminal.print(scores([score(4, None)])))
