"""A delta that was trained and not yet received survives a restart, and is used for exactly the work it was made for."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import Unreachable
from fedcybgd.agent.outbox import MOST, Outbox
from fedcybgd.agent.sending import Delivery
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import Manifest, ShardRef
from fedcybgd.shared.contract.training import ParameterGroup, TrainMetrics, TrainSettings
from tests.support.hostile import Answer, serving

METRICS = TrainMetrics(steps=3, rows=4, tokens=5, loss_first=2.5, loss_last=1.5, seconds=1, tokens_per_s=5)


def assignment(**changes: Any) -> LeasedAssignment:
    values: dict[str, Any] = {
        "assignment_id": f"asg_{1:016x}", "attempt": 1, "lease_seconds": 60, "run_id": f"run_{1:016x}", "run_name": "r", "round": 0, "cycle": 0,
        "block": "layers.0", "max_delta_bytes": 100,
        "manifest": Manifest(files=[], blocks=[ShardRef(block="layers.0", version=0, codec="exact", digest="a" * 64, size=8)]),
        "train": TrainSettings(
            task="causal-lm", groups=[ParameterGroup(blocks=["layers.0"], learning_rate=0.1)], batch_size=2, max_length=8, seed=1
        ),
    }  # fmt: skip
    return LeasedAssignment.model_validate(values | changes)


def fill(outbox: Outbox, work: LeasedAssignment) -> Path:
    outbox.delta_path(work).write_bytes(b"delta")
    path, metrics = outbox.put(work, digest_of(b"delta"), METRICS)
    assert metrics == METRICS
    return path


def test_a_delta_is_found_again_after_a_restart(tmp_path: Path) -> None:
    path = fill(Outbox(tmp_path / "outbox"), assignment())
    assert Outbox(tmp_path / "outbox").find(assignment()) == (path, METRICS)
    assert path.read_bytes() == b"delta"


@pytest.mark.parametrize("of", [{}, {"digest": "b" * 64}, {"assignment_id": f"asg_{2:016x}"}, {"attempt": 7}])
def test_only_a_receipt_of_this_delta_is_one(tmp_path: Path, of: dict[str, Any]) -> None:
    """Else it would be thrown away here for another, which something on the way has kept."""
    path, work = fill(Outbox(tmp_path), assignment()), assignment()
    taken = {"assignment_id": work.assignment_id, "attempt": work.attempt, "digest": digest_of(b"delta"), "state": "submitted"} | of
    offset = Answer.json({"offset": 5, "complete": True})
    with serving(lambda asked: offset if asked.method == "GET" else Answer.json(taken)) as server:
        delivery = Delivery(Client(server.url, "fca_x"), work, path, METRICS, lambda _: None)
        if not of:
            assert delivery.attempt().digest == digest_of(b"delta")
            return
        with pytest.raises(Unreachable, match="another delta"):
            delivery.attempt()


def test_a_later_attempt_of_the_same_work_may_use_it(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    path = fill(outbox, assignment())
    assert outbox.find(assignment(attempt=2, lease_seconds=30)) == (path, METRICS)


OTHER = {
    "another assignment": {"assignment_id": f"asg_{2:016x}"},
    "another base version": {
        "manifest": Manifest(files=[], blocks=[ShardRef(block="layers.0", version=1, codec="exact", digest="b" * 64, size=8)])
    },
    "another block": {
        "manifest": Manifest(files=[], blocks=[ShardRef(block="layers.1", version=0, codec="exact", digest="a" * 64, size=8)])
    },
    "another seed": {"train": assignment().train.model_copy(update={"seed": 2})},
    "another learning rate": {
        "train": assignment().train.model_copy(update={"groups": [ParameterGroup(blocks=["layers.0"], learning_rate=0.2)]})
    },
}


@pytest.mark.parametrize("what", OTHER)
def test_it_is_not_used_for_other_work_and_waits_until_its_own_is_over(tmp_path: Path, what: str) -> None:
    outbox = Outbox(tmp_path)
    fill(outbox, assignment())
    other = assignment(**OTHER[what])
    assert outbox.find(other) is None
    outbox.tidy(other, lambda _: False)
    assert outbox.find(assignment()) is not None
    outbox.tidy(other, lambda asked: asked == assignment().assignment_id)
    assert list(tmp_path.iterdir()) == []


def test_it_waits_for_weeks_and_not_for_ever(tmp_path: Path) -> None:
    outbox, other = Outbox(tmp_path), assignment(**OTHER["another seed"])
    note = fill(outbox, assignment()).with_suffix(".json")
    for days, waits in ((7, True), (45, True), (61, False)):
        os.utime(note, (time.time() - days * 86_400,) * 2)
        outbox.tidy(other, lambda _: False)
        assert (outbox.find(assignment()) is not None) is waits, days


def test_what_was_never_finished_does_not_wait(tmp_path: Path) -> None:
    outbox, other = Outbox(tmp_path), assignment(**OTHER["another seed"])
    outbox.delta_path(assignment()).with_suffix(".plain").write_bytes(b"half")
    outbox.left_path(assignment()).mkdir()
    (outbox.left_path(assignment()) / "head.safetensors").write_bytes(b"left")
    outbox.tidy(other, lambda _: False)
    assert list(tmp_path.iterdir()) == []


def test_many_that_wait_are_bounded_in_number_and_bytes(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    works = [assignment(assignment_id=f"asg_{n:016x}") for n in range(2 * MOST)]
    for age, work in enumerate(reversed(works)):
        os.utime(fill(outbox, work).with_suffix(".json"), (time.time() - age * 60,) * 2)
    outbox.tidy(works[-1], lambda _: False)
    assert [outbox.find(work) is not None for work in works] == [False] * (MOST - 1) + [True] * (MOST + 1)
    each = sum(path.stat().st_size for path in tmp_path.iterdir()) // (MOST + 1)
    assert outbox.shrink(3 * each, works[MOST]) <= 3 * each
    assert [n for n, work in enumerate(works) if outbox.find(work)] == [MOST, 2 * MOST - 2, 2 * MOST - 1], "the one at hand, and the newest"


def test_a_delta_without_its_note_is_not_used(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.delta_path(assignment()).write_bytes(b"delta")  # the agent died before `put`
    assert outbox.find(assignment()) is None
    assert list(tmp_path.iterdir()) == []


def test_a_note_without_its_delta_is_not_used(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    fill(outbox, assignment()).unlink()
    assert outbox.find(assignment()) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("note", ["", "{", '{"steps": 1}', '{"of": "a later version"}'])
def test_a_note_that_cannot_be_read_costs_the_delta_and_not_the_agent(tmp_path: Path, note: str) -> None:
    outbox = Outbox(tmp_path)
    fill(outbox, assignment()).with_suffix(".json").write_text(note)
    assert outbox.find(assignment()) is None
    assert list(tmp_path.iterdir()) == []


def test_what_was_received_is_cleared(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    fill(outbox, assignment())
    outbox.drop(assignment())
    assert list(tmp_path.iterdir()) == []
    assert outbox.find(assignment()) is None
