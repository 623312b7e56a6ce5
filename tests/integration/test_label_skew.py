"""A run over agents with unlike labels says so, once, with what to do about it."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import save
from sqlalchemy import select

from fedcybgd.coordinator.db.models import BlockVersion
from fedcybgd.shared.contract.digests import digest_of
from tests.integration.test_export import upload
from tests.support.live import LiveCoordinator
from tests.support.visits import METRICS, Hand, refused, settled, start_run


@pytest.fixture
def hands(live: LiveCoordinator) -> list[Hand]:
    return [Hand(live) for _ in range(3)]


def submit(hand: Hand, assignment: Any, counts: list[int] | None, **more: Any) -> httpx.Response:
    data = save(hand.delta(assignment))
    assert hand.put(assignment, data).status_code == 200
    metrics = METRICS.model_copy(update={"rows": 16, "label_counts": counts, **more}).model_dump(mode="json")
    body = {"attempt": assignment.attempt, "digest": digest_of(data), "metrics": metrics}
    return hand.http.post(f"/assignments/{assignment.assignment_id}/delta", json=body)


def deliver(hand: Hand, run: str, counts: list[int] | None, code: str | None = None, **more: Any) -> Any:
    assignment = hand.take(run)
    answer = submit(hand, assignment, counts, **more)
    if code is not None:
        refused(answer, 422, code)
        return hand.give_back(assignment, "other")
    assert answer.status_code == 202, answer.text
    return assignment


def told(live: LiveCoordinator, run: str) -> list[tuple[str, str]]:
    events = live.operator.get(f"/runs/{run}")["events"]
    return [(e["code"], e["message"]) for e in reversed(events) if e["code"] in ("label_skew", "labels_forgotten", "single_label")]


def test_unlike_labels_that_are_told_are_a_warning_with_the_remedy(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = start_run(live, model, hands, schedule={"cycles": 3, "agents": "rotating"}, train={"label_skew": "none"})
    by_name = {hand.name: hand for hand in hands}
    counts = {hand.name: [16 * (label == number) for label in range(3)] for number, hand in enumerate(hands)}
    for visit in range(5):
        view = settled(live, run)
        name = view["current"][0]["meant_for"]
        if visit == 1:
            assert told(live, run) == [], "of one agent nothing can be said"
            deliver(by_name[name], run, [15, 0, 0], code="label_counts_invalid")
        deliver(by_name[name], run, counts[name], loss_first=0.0, loss_last=0.0)
    settled(live, run)
    [(code, text)] = told(live, run)
    assert code == "label_skew"
    assert "train.label_skew: smoothed" in text
    shown = [live.operator.get(f"/runs/{run}"), live.operator.get(f"/runs/{run}/assignments"), live.operator.get("/status")]
    assert not re.search(r"'label_counts': \[", str(shown)), "counts are nobody's to read"


@pytest.mark.parametrize(("kind", "loss"), [("logit_adjustment", 0.0), ("smoothed", 0.1)])
def test_an_agent_of_one_label_is_told_of(live: LiveCoordinator, model: str, hands: list[Hand], kind: str, loss: float) -> None:
    run = start_run(live, model, hands[:1], schedule={"cycles": 2}, train={"label_skew": kind})
    for _ in range(2):
        deliver(hands[0], run, [16, 0, 0], loss_first=loss, loss_last=loss)
        settled(live, run)
    [(code, text)] = told(live, run)
    assert code == "single_label"
    assert hands[0].name in text


@pytest.mark.parametrize("counts", [None, [8, 8, 0]])
def test_an_agent_that_has_learned_its_rows_is_not_told_of(
    live: LiveCoordinator, model: str, hands: list[Hand], counts: list[int] | None
) -> None:
    run = start_run(live, model, hands[:1], schedule={"cycles": 2}, train={"label_skew": "smoothed"})
    for loss in (0.7, 0.0):
        deliver(hands[0], run, counts, loss_first=loss, loss_last=0.0)
        settled(live, run)
    assert told(live, run) == []


def test_counts_that_a_run_file_asks_for_and_nobody_tells_are_missed_once(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = start_run(live, model, hands[:2], schedule={"wave": 2, "blocks": ["layers.0", "layers.1"], "head_average": "by_label"})
    for hand in hands[:2]:
        hand.deliver(hand.take(run))
    settled(live, run)
    codes = [e["code"] for e in live.operator.get(f"/runs/{run}")["events"]]
    assert codes.count("label_counts_missing") == 1


def test_where_nobody_tells_a_row_of_the_head_is_of_those_that_move_it(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = start_run(live, model, hands[:2], schedule={"wave": 2, "blocks": ["layers.0", "layers.1"]})
    taken = [(hand, hand.take(run)) for hand in hands[:2]]
    for hand, assignment in taken:
        tensors = hand.delta(assignment)
        tensors["classifier.weight"][:] = 0.0
        tensors["classifier.weight"][[0, 1] if assignment.block == "layers.0" else [1]] = 0.01
        hand.deliver(assignment, tensors)
    run_id = settled(live, run)["id"]
    with live.database.reading() as session:
        of_head = select(BlockVersion).where(BlockVersion.run_id == run_id, BlockVersion.block == "head", BlockVersion.version == 1)
        change = session.scalars(of_head).one().change
    assert change is not None
    assert [term.rows for term in change.terms] == [[1.0, 0.5, 0.5], [0.0, 0.5, 0.5]]


def test_class_means_are_a_round_of_heads_before_the_first_cycle(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    schedule = {"head_start": "class_means", "wave": 2, "damping": 0.5, "blocks": ["layers.0", "layers.1"], "cycles": 2}
    run = start_run(live, model, hands, schedule=schedule)
    assert settled(live, run)["rounds_total"] == 3
    for number, hand in enumerate(hands):
        assignment = hand.take(run)
        assert (assignment.train.trained, assignment.train.head_start) == (("head",), "class_means")
        counts = [0, 0, 0]
        counts[number] = 16
        assert submit(hand, assignment, counts).status_code == 202
    view = settled(live, run)
    assert view["rounds_done"] == 1
    later = next(found for hand in hands if (found := hand.claim(run)) is not None)
    assert (later.train.head_start, "head" in later.train.trained, later.train.trained[0].startswith("layers.")) == ("fresh", True, True)
    series = live.operator.get(f"/runs/{run}/series")
    assert series["visits"] == len(hands)


ROWS = [{"text": f"w{i}", "label": i % 3} for i in range(30)]


def test_forgotten_labels_show_in_the_held_out_rows(live: LiveCoordinator, model: str, hands: list[Hand], tmp_path: Path) -> None:
    """Visits that drive the head to one label, as those of agents do whose rows have no other."""
    run = start_run(
        live,
        model,
        hands[:1],
        schedule={"cycles": 1, "blocks": ["layers.0", "layers.1"]},
        evaluate=upload(live, ROWS, tmp_path) | {"every": "round"},
        admission={"gate": "off", "norm_band": None},
    )
    for number in range(2):
        assignment = hands[0].take(run)
        tensors = {name: tensor * 0 for name, tensor in hands[0].delta(assignment).items()}
        bias = next(name for name, tensor in tensors.items() if tensor.shape == (3,))
        tensors[bias][number] += 5.0
        tensors[next(name for name in tensors if name != bias)].view(-1)[0] += 1e-3 * (number + 1)
        hands[0].deliver(assignment, tensors)
        settled(live, run)
    [(code, text)] = told(live, run)
    assert code == "labels_forgotten"
    assert "of 3 labels" in text
