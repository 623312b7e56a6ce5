"""The life of a run over HTTP: every order of start, pause, resume and cancel, and what they do to work that is under way."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

import fedcybgd.coordinator.engine.prepare
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import (
    Hand,
    finish,
    fresh,
    last_visit,
    operator,
    refused,
    run_file,
    settled,
    start_run,
    state_of,
    unchanged,
    versions,
    wire,
)

pytestmark = pytest.mark.database_decides

ACTIONS = ("start", "pause", "resume", "cancel")


def act(live: LiveCoordinator, run: str, *actions: str) -> None:
    for action in actions:
        live.operator.post(f"/runs/{run}/{action}")


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("before", "possible", "state"),
    [
        ([], {"start", "cancel"}, "draft"),
        (["start"], {"pause", "cancel"}, "running"),
        (["start", "pause"], {"resume", "cancel"}, "paused"),
        (["start", "pause", "resume"], {"pause", "cancel"}, "running"),
        (["cancel"], set(), "cancelled"),
        (["start", "cancel"], set(), "cancelled"),
        (["start", "pause", "cancel"], set(), "cancelled"),
    ],
)
def test_every_order_that_makes_no_sense_is_refused(
    live: LiveCoordinator, model: str, hand: Hand, before: list[str], possible: set[str], state: str
) -> None:
    run = live.create_run(run_file(model, [hand]))["name"]
    act(live, run, *before)
    with unchanged(live, run):
        for action in ACTIONS:
            if action not in possible:
                error = refused(operator(live).post(f"/runs/{run}/{action}"), 409, "invalid_transition")
                assert error.detail == {"state": state, "event": action}
    for action in sorted(possible):
        other = live.create_run(run_file(model, [hand]))["name"]
        act(live, other, *before, action)


def test_a_completed_run_stays_as_it_is(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], schedule={"blocks": ["layers.0"]})
    finish(live, run, [hand])
    assert live.operator.get(f"/runs/{run}")["state"] == "completed"
    with unchanged(live, run):
        for action in ACTIONS:
            refused(operator(live).post(f"/runs/{run}/{action}"), 409, "invalid_transition")
        assert hand.claim(run) is None


@pytest.mark.parametrize("action", ACTIONS)
def test_only_runs_that_there_are_can_be_acted_on(live: LiveCoordinator, action: str) -> None:
    refused(operator(live).post(f"/runs/nobody/{action}"), 404, "not_found")


def test_a_run_cannot_start_before_it_is_prepared(live: LiveCoordinator, model: str, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, real = threading.Event(), fedcybgd.coordinator.engine.prepare.prepare

    def slow(*arguments: Any) -> Any:
        assert may_go_on.wait(20)
        return real(*arguments)

    monkeypatch.setattr(fedcybgd.coordinator.engine.prepare, "prepare", slow)
    run = live.operator.post("/runs", run_file(model, [hand]))["name"]
    try:
        refused(operator(live).post(f"/runs/{run}/start"), 409, "run_not_prepared")
        refused(operator(live).post(f"/runs/{run}/exports"), 409, "run_not_prepared")
        assert [o for o in hand.me().runs if o.name == run] == []
        view = live.operator.get(f"/runs/{run}")
        assert (view["state"], view["prepared"], view["blocks"]) == ("draft", False, [])
    finally:
        may_go_on.set()
    wait_for(lambda: live.operator.get(f"/runs/{run}")["prepared"])
    act(live, run, "start")


def test_a_run_cancelled_while_it_is_prepared_stays_cancelled(live: LiveCoordinator, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, real = threading.Event(), fedcybgd.coordinator.engine.prepare.prepare

    def slow(*arguments: Any) -> Any:
        assert may_go_on.wait(20)
        return real(*arguments)

    monkeypatch.setattr(fedcybgd.coordinator.engine.prepare, "prepare", slow)
    run = live.operator.post("/runs", run_file(model, "all"))["name"]
    act(live, run, "cancel")
    may_go_on.set()
    view = settled(live, run)
    assert (view["state"], view["prepared"], view["blocks"]) == ("cancelled", False, [])


def test_a_run_cannot_start_without_its_agents(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = live.create_run(run_file(model, "all") | {"agents": [hand.name, "not-enrolled"]})["name"]
    with unchanged(live, run):
        error = refused(operator(live).post(f"/runs/{run}/start"), 409, "no_agents")
    assert error.detail["unknown"] == ["not-enrolled"]


def test_a_run_cannot_start_with_a_revoked_agent_only(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = live.create_run(run_file(model, [hand]))["name"]
    live.operator.post(f"/agents/{hand.name}/revoke")
    with unchanged(live, run):
        refused(operator(live).post(f"/runs/{run}/start"), 409, "no_agents")


def test_a_run_for_all_cannot_start_while_nobody_is_enrolled(coordinators: Callable[..., LiveCoordinator], bert: Any) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    run = live.create_run(run_file("bert", "all"))["name"]
    with unchanged(live, run):
        assert "fedagent enroll" in refused(operator(live).post(f"/runs/{run}/start"), 409, "no_agents").message
    hand = Hand(live)
    act(live, run, "start")
    assert live.operator.get(f"/runs/{run}")["participants"] == [hand.name]


def test_a_pause_lets_the_work_be_finished_and_opens_no_round(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    act(live, run, "pause")
    assert hand.renew(assignment).json()["go_on"] is True
    hand.deliver(assignment)
    view = settled(live, run)
    assert (view["state"], view["reason"], view["rounds_done"]) == ("paused", "paused by the operator", 1)
    assert (versions(live, run)["layers.0"], versions(live, run)["layers.1"]) == (1, 0)
    assert len(live.operator.get(f"/runs/{run}/assignments")) == 1
    assert hand.claim(run) is None
    act(live, run, "resume")
    assert live.operator.get(f"/runs/{run}")["reason"] is None
    assert hand.take(run).block == "layers.1"


def test_what_waits_for_an_agent_is_not_given_out_during_a_pause(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    act(live, run, "pause")
    with unchanged(live, run):
        assert hand.claim(run) is None
    act(live, run, "resume")
    assert hand.take(run).attempt == 1


def test_the_last_round_may_be_finished_during_a_pause(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], schedule={"blocks": ["layers.0"]})
    assignment = hand.take(run)
    act(live, run, "pause")
    hand.deliver(assignment)
    view = settled(live, run)
    assert (view["state"], view["reason"], view["rounds_done"]) == ("completed", None, 1)


def test_a_cancel_is_told_at_the_next_renewal_and_nothing_more_is_applied(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    assert hand.renew(assignment).json()["go_on"] is True
    blocks = state_of(live, run)["blocks"]
    act(live, run, "cancel")
    assert hand.renew(assignment).json()["go_on"] is False
    hand.deliver(assignment)  # an agent that did not listen
    settled(live, run)
    visit = last_visit(live, run)
    assert (visit["state"], visit["reason"]) == ("rejected", "run_cancelled")
    assert state_of(live, run)["blocks"] == blocks
    assert hand.claim(run) is None
    assert live.operator.get(f"/runs/{run}")["state"] == "cancelled"


def test_work_of_a_cancelled_run_can_be_given_back(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    act(live, run, "cancel")
    assert hand.give_back(assignment, "stopping").status_code == 200
    assert last_visit(live, run)["state"] == "pending"
    assert hand.claim(run) is None


def test_an_agent_is_told_of_the_runs_that_are_open_to_it_only(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = live.create_run(run_file(model, [hand]))
    offer = next(o for o in hand.me().runs if o.run_id == run["id"])
    assert (offer.state, offer.num_labels, offer.fields) == ("draft", 3, ["text and label"])
    assert run["id"] not in [o.run_id for o in other.me().runs]
    act(live, run["id"], "cancel")
    assert run["id"] not in [o.run_id for o in hand.me().runs]


def test_two_starts_at_once_open_one_round(live: LiveCoordinator, model: str, hand: Hand) -> None:
    from tests.support.visits import together

    run = live.create_run(run_file(model, [hand]))["name"]
    caller = wire(live, live.operator_key)
    answers = together(6, lambda _: caller.post(f"/runs/{run}/start"))
    assert sorted(a.status_code for a in answers) == [200] + [409] * 5
    assert len(state_of(live, run)["assignments"]) == 1


def test_a_name_means_the_newest_run(live: LiveCoordinator, model: str, hand: Hand) -> None:
    spec = run_file(model, [hand]) | {"name": fresh("again")}
    old = live.create_run(spec)
    act(live, spec["name"], "cancel")
    new = live.create_run(spec)
    act(live, spec["name"], "start")
    assert [live.operator.get(f"/runs/{r['id']}")["state"] for r in (old, new)] == ["cancelled", "running"]
