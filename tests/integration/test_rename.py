"""Another name for an agent, and nothing else of it."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedcybgd.agent import credentials, enrolment, reaching
from fedcybgd.agent.client import Client
from fedcybgd.agent.device import find_device
from fedcybgd.agent.errors import CoordinatorSaid
from fedcybgd.agent.readiness import Verdicts
from fedcybgd.agent.settings import Home, template
from tests.support.browser import logged_in, sent
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, fresh, operator, refused, start_run

pytestmark = pytest.mark.one_database


def test_it_holds_what_it_held_under_another_name(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, "all", schedule={"agents": "first_come"})
    held = hand.take(run)
    before = live.operator.get(f"/agents/{hand.name}")
    called = operator(live).post(f"/agents/{hand.name}/rename", json={"name": (name := fresh("other"))})
    assert called.status_code == 200, called.text
    assert called.json() == {**before, "name": name}
    refused(operator(live).get(f"/agents/{hand.name}"), 404, "not_found")
    assert hand.me().name == name
    hand.deliver(held)
    told = live.operator.get("/events", code="agent_renamed", agent=name)
    assert [hand.name in each["message"] and name in each["message"] for each in told] == [True]
    Hand(live, hand.name)  # the old name is free


def test_names_that_are_taken_or_that_run_files_go_by_stay(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    rename = f"/agents/{hand.name}/rename"
    refused(operator(live).post(rename, json={"name": other.name}), 409, "agent_name_taken")
    refused(operator(live).post(rename, json={"name": live.operator.get(f"/agents/{other.name}")["id"]}), 409, "agent_name_taken")
    for bad in ("", "../etc", "a b", "x" * 101, 7):
        refused(operator(live).post(rename, json={"name": bad}), 422, "invalid_request")
    run = start_run(live, model, [hand])
    said = refused(operator(live).post(rename, json={"name": fresh("other")}), 409, "agent_named")
    assert live.operator.get(f"/runs/{run}")["name"] in said.message
    assert operator(live).post(rename, json={"name": hand.name}).json()["name"] == hand.name  # as it is
    live.operator.post(f"/runs/{run}/cancel")
    assert operator(live).post(f"/runs/{run}/delete").status_code == 204
    assert operator(live).post(rename, json={"name": fresh("other")}).status_code == 200


def test_work_for_its_new_name_reaches_it_at_once(live: LiveCoordinator, model: str, hand: Hand) -> None:
    assert hand.claim("*") is None, "it is known by its name"
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(hand.claim, "*", 60)
        wait_for(lambda: len(live.app.state.waiting) == 1)
        live.operator.post(f"/agents/{hand.name}/rename", {"name": (name := fresh("other"))})
        assert waits.result(timeout=20) is None
    hand.name = name
    run = start_run(live, model, [hand])
    assert hand.claim(run, wait=10) is not None


def full(home: Home, mine: credentials.Credentials) -> None:
    raise OSError(errno.ENOSPC, "the disk is full")


def test_its_daemon_learns_the_name_and_gets_another_key_before_it_has(
    live: LiveCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    token = live.operator.post("/enrolment-tokens", {})["token"]
    enrolment.enrol(home, live.url, token, first := fresh("agent"), template(live.url, None, ["none"]))
    live.operator.post(f"/agents/{first}/rename", {"name": (second := fresh("other"))})
    again = live.operator.post(f"/agents/{second}/reissue", {})["token"]
    with pytest.raises(CoordinatorSaid, match=second):
        enrolment._spend(Home(tmp_path / "another"), Client(live.url), again, first, find_device("cpu"))
    enrolment.enrol_again(home, Client(live.url), again)
    assert credentials.load(home).name == second
    live.operator.post(f"/agents/{second}/rename", {"name": (third := fresh("third"))})
    config, rules = reaching.load(home)
    with monkeypatch.context() as patch:
        patch.setattr(credentials, "save", full)
        Verdicts(home, reaching.client(home, config, rules, credentials.load(home))).refresh(config, rules)
    Verdicts(home, reaching.client(home, config, rules, credentials.load(home))).refresh(config, rules)
    assert credentials.load(home).name == third


def test_it_is_renamed_on_its_page(live: LiveCoordinator, hand: Hand) -> None:
    client = logged_in(live)
    agent = live.operator.get(f"/agents/{hand.name}")["id"]
    assert sent(client, f"/admin/agents/{agent}/rename", name="not a name").status_code == 422
    answer = sent(client, f"/admin/agents/{agent}/rename", name=(name := fresh("other")))
    assert (answer.status_code, answer.headers["location"]) == (303, f"/admin/agents/{agent}?did=renamed")
    assert f"<h1>{name}" in client.get(answer.headers["location"]).text
