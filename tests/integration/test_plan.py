"""`POST /v1/plan` and `fedcoord plan`: what a run would ask of the agents, before it is created."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fedcybgd.coordinator.cli import app
from fedcybgd.shared.contract.agents import ClaimRequest, DeclaredLimits
from fedcybgd.shared.contract.plans import PlanView
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand

SPEC: dict[str, Any] = {
    "name": "planned",
    "model": "bert",
    "task": {"kind": "text-classification", "labels": 3, "max_length": 16},
    "schedule": {"always": ["pooler", "head"], "cycles": 3},
    "train": {"steps": 2, "batch_size": 4},
}


@pytest.fixture
def coordinator(coordinators: Callable[..., LiveCoordinator], bert: Path) -> LiveCoordinator:
    live = coordinators()
    live.add_model("bert", bert)
    for name in ("berlin", "oslo"):
        live.enrol(name)
    return live


def plan(live: LiveCoordinator, spec: dict[str, Any] = SPEC, query: str = "") -> PlanView:
    return PlanView.model_validate(live.operator.post(f"/plan{query}", spec))


def test_it_says_what_each_agent_will_take_before_there_is_a_run(coordinator: LiveCoordinator) -> None:
    view = plan(coordinator, query="?tokens_per_s=100&rows=10")
    assert view.visited == ["embeddings", "layers.0", "layers.1"]
    assert (view.rounds, view.prepared, view.problems, view.at_once) == (9, False, [], 1)
    assert view.first_cycle_down == sum(agent.first_cycle.down for agent in view.agents)
    assert view.first_cycle_down / 2 < view.first_cycle_down_once < view.first_cycle_down, "two agents fetch much of the same"
    assert coordinator.operator.every("/runs") == []
    berlin, oslo = view.agents
    assert (berlin.name, oslo.name, berlin.able) == ("berlin", "oslo", True)
    assert berlin.visits_per_cycle + oslo.visits_per_cycle == 3
    for agent in view.agents:
        assert agent.memory_largest
        assert agent.memory_mean
        assert 0 < agent.memory_mean <= agent.memory_largest < agent.memory_needed
        assert agent.first_cycle.down > agent.later_cycle.down > 0  # type: ignore[union-attr]
        assert agent.training_hours == pytest.approx(agent.visits_per_cycle * 3 * 2 * 4 * 16 / 100 / 3600)
        assert agent.transfer_hours is None
        for visit in agent.visits:
            assert visit.codecs["exact"] == [name for name in ["embeddings", "layers.0", "layers.1", "pooler", "head"]
                                             if name in (visit.block, "pooler", "head")]  # fmt: skip


def test_a_prepared_run_of_that_name_has_the_blocks_that_were_planned(coordinator: LiveCoordinator) -> None:
    before = plan(coordinator)
    run = coordinator.create_run(SPEC)
    assert run["prepared"], run["reason"]
    coordinator.operator.wait(lambda: coordinator.operator.get("/runs/planned"), lambda r: not r["pending_jobs"], every=0.05)
    after = plan(coordinator)
    assert after.prepared
    assert after.visited == before.visited
    assert after.rounds == before.rounds == run["rounds_total"]
    for one, other in zip(before.agents, after.agents, strict=True):
        assert [v.codecs for v in one.visits] == [v.codecs for v in other.visits]
        assert [v.memory_bytes for v in one.visits] == pytest.approx([v.memory_bytes for v in other.visits], rel=0.001)
        assert one.first_cycle.down == pytest.approx(other.first_cycle.down, rel=0.1)


def test_blocks_to_train_in_8_bits_take_less_of_an_agent(coordinator: LiveCoordinator) -> None:
    exact, rounded = plan(coordinator), plan(coordinator, SPEC | {"compression": {"trained": "int8"}})
    for one, other in zip(exact.agents, rounded.agents, strict=True):
        assert other.first_cycle.down < one.first_cycle.down  # type: ignore[union-attr]
        assert other.later_cycle.down < one.later_cycle.down / 2  # type: ignore[union-attr]
        assert (other.memory_largest or 0) < (one.memory_largest or 0)
        assert {tuple(visit.codecs) for visit in other.visits} == {("int8",)}


def test_who_cannot_take_part_is_named_with_the_reason(coordinator: LiveCoordinator) -> None:
    small = coordinator.enrol("small")
    small.claim(ClaimRequest(limits=DeclaredLimits(memory_bytes=1_000_000, bytes_per_s=1000)), 0)
    full = coordinator.enrol("full")
    full.claim(ClaimRequest(limits=DeclaredLimits(disk_bytes=1000)), 0)
    coordinator.enrol("gone")
    coordinator.operator.post("/agents/gone/revoke")
    coordinator.enrol("other")
    view = plan(coordinator, {**SPEC, "agents": ["berlin", "small", "full", "gone"]})
    found = {a.name: (a.able, a.reason) for a in view.agents}
    assert found == {
        "berlin": (True, None), "oslo": (False, "not_in_run"), "other": (False, "not_in_run"), "small": (False, "memory_limit"),
        "full": (False, "disk_limit"), "gone": (False, "revoked"),
    }  # fmt: skip
    assert [a.disk_allowed for a in view.agents if a.name in ("full", "small")] == [1000, None]
    [said] = [a for a in view.agents if a.name == "small"]
    assert "of memory are missing" in (said.message or "")
    assert said.visits
    assert all(v.why_not and v.memory_bytes is None for v in said.visits)


def test_an_exposure_budget_that_is_too_small_and_missing_agents_are_problems(coordinator: LiveCoordinator) -> None:
    view = plan(coordinator, {**SPEC, "exposure": {"max_exact_blocks": 3}})
    assert any("max_exact_blocks is 3" in problem for problem in view.problems)
    assert {a.reason for a in view.agents} == {"exposure_budget"}
    view = plan(coordinator, {**SPEC, "agents": ["nobody"]})
    assert any("nobody" in problem for problem in view.problems)


@pytest.mark.parametrize(
    ("change", "status", "code", "said"),
    [
        ({"model": "unknown"}, 404, "not_found", "there is no model 'unknown'"),
        ({"schedule": {"blocks": ["layers.7"]}}, 422, "model_not_partitionable", "means no block of this model"),
        ({"schedule": {"always": ["tail"]}}, 422, "run_refused", "`always` names tail"),
        ({"schedule": {"cycles": 0}}, 422, "invalid_request", "cycles"),
    ],
)
def test_what_cannot_be_planned_is_refused(coordinator: LiveCoordinator, change: dict[str, Any], status: int, code: str, said: str) -> None:
    answer = coordinator.operator._http.post("/plan", json={**SPEC, **change})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert said in answer.json()["message"]


def test_the_command_draws_it_and_gives_it_as_json(coordinator: LiveCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCOORD_URL", coordinator.url)
    monkeypatch.setenv("FEDCOORD_OPERATOR_KEY", coordinator.operator_key)
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "run.yaml"
    # A held-out file that is not there is no obstacle.
    file.write_text(yaml.safe_dump({**SPEC, "evaluate": {"held_out": "nowhere.csv"}}))
    drawn = CliRunner().invoke(app, ["plan", str(file), "--tokens-per-s", "500"])
    assert drawn.exit_code == 0, drawn.output
    for text in ("planned over bert: 9 rounds", "berlin", "layers.1", "int8:"):
        assert text in drawn.output
    coordinator.operator.post("/agents/oslo/revoke")
    assert "oslo cannot take part: it was revoked by the operator (revoked)" in CliRunner().invoke(app, ["plan", str(file)]).output
    machine = CliRunner().invoke(app, ["plan", str(file), "--json"])
    assert PlanView.model_validate(json.loads(machine.output)).run == "planned"
    file.write_text(yaml.safe_dump({**SPEC, "shedule": {}}))
    wrong = CliRunner().invoke(app, ["plan", str(file)])
    assert "shedule: there is no such field" in str(wrong.exception)


@pytest.mark.parametrize(("policy", "least"), [("none", True), ("int8", True), ("int4", True), ("auto", False)])
def test_an_agent_is_told_what_a_run_takes_of_its_disk_at_the_least(coordinator: LiveCoordinator, policy: str, least: bool) -> None:
    hand = Hand(coordinator)
    spec = {**SPEC, "name": f"for-{policy}", "compression": {"policy": policy}}
    run = coordinator.create_run(spec)
    [told] = [offer for offer in hand.http.get("/agents/me").json()["runs"] if offer["run_id"] == run["id"]]
    bytes_told, planned = told["visits"]["least_disk_bytes"], max(agent.disk_needed or 0 for agent in plan(coordinator, spec).agents)
    assert 0 < planned / 4 < bytes_told <= planned if least else bytes_told is None, (planned, bytes_told)
