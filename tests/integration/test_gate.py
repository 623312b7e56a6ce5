"""What the held-out loss says of rounds: by numbers made up here, and by a real engine that scores real poison."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcybgd import Client
from fedcybgd.coordinator.domain.gate import GateVerdict
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, Tensors, events, settled, start_run, state_of, versions

ROWS = [{"text": f"my card is {'lost' if i % 3 else 'not working'} " + "please " * (i % 5), "label": i % 3} for i in range(12)]


@pytest.fixture
def held_out(live: LiveCoordinator, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"held_out": path.name, "digest": Client(live.url, live.operator_key).runs.upload_held_out(path), "every": "end"}


def admission(gate: str) -> dict[str, Any]:
    return {"gate": gate, "norm_band": None, "max_relative_norm": None}


def poison(hand: Hand, tensors: Tensors) -> Tensors:
    torch.manual_seed(1)
    return {name: 1000 * torch.randn_like(t) for name, t in tensors.items()}


def losses(live: LiveCoordinator, run: str) -> list[float | None]:
    return [
        found
        for r in sorted(live.operator.get(f"/runs/{run}")["rounds"], key=lambda r: r["number"])
        for found in (r["loss_before"], r["loss_after"])
    ]


@pytest.mark.parametrize("gate", ["off", "warn"])
def test_a_run_whose_model_was_damaged_is_paused_by_default(
    live: LiveCoordinator, model: str, hand: Hand, held_out: dict[str, Any], gate: str
) -> None:
    run = start_run(live, model, [hand], schedule={"cycles": 3}, evaluate=held_out, admission=admission(gate))
    hand.deliver(hand.take(run))
    settled(live, run)
    assert "held_out_worse" not in events(live, run)
    hand.deliver(assignment := hand.take(run), poison(hand, hand.delta(assignment)))
    settled(live, run)
    view = live.operator.get(f"/runs/{run}")
    assert view["rounds_done"] == 2
    if gate == "off":
        assert (view["state"], "held_out_worse" in events(live, run)) == ("running", False)
        return
    wait_for(lambda: live.state_of(run) == "paused")
    view = live.operator.get(f"/runs/{run}")
    assert "held_out_worse" in events(live, run)
    assert f"with round 1 (layers.1 by {hand.name})" in view["reason"]
    live.operator.post(f"/runs/{run}/resume")
    hand.deliver(hand.take(run))
    assert settled(live, run)["state"] == "running", "it goes on from there when the operator wants it"


@pytest.mark.parametrize("wave", [1, 2])
def test_what_does_harm_does_not_count_where_the_gate_is_enforced(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand, held_out: dict[str, Any], wave: int
) -> None:
    """Of a wave the one that does harm is trained by another; the other one stays accepted."""
    third = Hand(live)
    schedule = {"cycles": 1, "wave": wave, "agents": "fixed"}
    run = start_run(live, model, [hand, other, third], schedule=schedule, evaluate=held_out, admission=admission("enforce"))
    before = state_of(live, run)["blocks"]
    hand.deliver(assignment := hand.take(run), poison(hand, hand.delta(assignment)))
    if wave == 2:
        other.deliver(other.take(run))
    settled(live, run)
    assert (state_of(live, run)["blocks"], events(live, run).count("delta_rejected")) == (before, 1)
    visits = live.operator.get(f"/runs/{run}/assignments")
    rejected = [visit for visit in visits if visit["state"] == "rejected"]
    assert [visit["agent"] for visit in rejected] == [hand.name]
    assert rejected[0]["reason"].startswith("gate: the held-out loss would rise from")
    assert [visit["state"] for visit in visits if visit["agent"] == other.name] == (["accepted"] if wave == 2 else [])
    third.deliver(third.take(run))
    view = settled(live, run)
    assert view["rounds_done"] == 1
    assert versions(live, run)["layers.0"] == 1
    found = losses(live, run)
    assert found[0] is not None
    assert found[1] is not None
    assert abs(found[1] - found[0]) < 0.5


def test_what_makes_it_worse_is_tried_by_half(
    live: LiveCoordinator, model: str, hand: Hand, held_out: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [GateVerdict.WORSE, GateVerdict.FINE]
    monkeypatch.setattr("fedcybgd.coordinator.services.path.gated.verdict", lambda *_: found.pop(0))
    run = start_run(live, model, [hand], evaluate=held_out, admission=admission("enforce"))
    base = hand.base(assignment := hand.take(run))["layers.0"]
    tensors = hand.delta(assignment)
    hand.deliver(assignment, tensors)
    assert settled(live, run)["rounds_done"] == 1
    assert "delta_halved" in events(live, run)
    new = hand.base(hand.take(run))
    from safetensors.torch import load_file

    digest = next(b["digest"] for b in live.operator.get(f"/runs/{run}")["blocks"] if b["name"] == "layers.0")
    after = load_file(live.store.path(digest))
    assert all(torch.allclose(after[name], base[name] + tensors[name] / 2, atol=1e-7) for name in base)
    assert "head" in new


def test_a_run_without_calibration_rows_says_that_it_has_no_gate(live: LiveCoordinator, model: str, hand: Hand) -> None:
    said = {}
    for gate in ("warn", "off"):
        run = start_run(live, model, [hand], admission=admission(gate))
        said[gate] = next(e["message"] for e in live.operator.get(f"/runs/{run}")["events"] if e["code"] == "run_started")
    assert "the gate is off" in said["warn"]
    assert "gate" not in said["off"]
