"""A delta that was trained and not yet received survives a restart, and is used for exactly the work it was made for."""

from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent.outbox import Outbox
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import Manifest, ShardRef
from fedcybgd.shared.contract.training import ParameterGroup, TrainMetrics, TrainSettings

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
def test_it_is_not_used_for_other_work_and_makes_room(tmp_path: Path, what: str) -> None:
    outbox = Outbox(tmp_path)
    fill(outbox, assignment())
    assert outbox.find(assignment(**OTHER[what])) is None
    assert list(tmp_path.iterdir()) == []


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
    outbox.clear()
    assert list(tmp_path.iterdir()) == []
    assert outbox.find(assignment()) is None
