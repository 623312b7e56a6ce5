"""Who is there for a run and whose data fit: said before it starts, and followed while it goes on."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.upkeep import standstill
from fedcybgd.shared.contract.words import OFFERS
from tests.support.browser import logged_in
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, events, last_visit, one_more_waits, operator, refused, run_file, settled, start_run, sweep, unchanged

pytestmark = pytest.mark.database_decides


def say(hand: Hand, run_id: str, fits: bool, reason: str | None = None, **more: Any) -> None:
    body = {"runs": [{"run_id": run_id, "fits": fits, "reason": reason, **more}]}
    answer = hand.http.put("/agents/me/readiness", json=body)
    assert answer.status_code == 204, answer.text


def standings(live: LiveCoordinator, run: str) -> dict[str, str]:
    return {m["agent"]: m["standing"] for m in live.operator.every(f"/runs/{run}/readiness")}


def hush(live: LiveCoordinator, hand: Hand) -> None:
    """As if the agent had not been heard of for long."""
    agent_id = next(a for a in live.operator.every("/agents") if a["name"] == hand.name)["id"]
    with live.database.transaction() as session:
        row = session.get_one(Agent, agent_id)
        assert row.last_seen_at is not None
        row.last_seen_at -= timedelta(seconds=live.settings.silent_after_s + 1)
    wait_for(lambda: next(a for a in live.operator.every("/agents") if a["name"] == hand.name)["state"] == "silent", limit=5)


def draft(live: LiveCoordinator, model: str, hands: list[Hand], **more: Any) -> Any:
    return live.create_run(run_file(model, hands, **more))


def test_a_run_starts_with_those_who_are_there_and_says_who_is_not(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    absent, silent, unfit = Hand(live, seen=False), Hand(live), Hand(live)
    run = draft(live, model, [hand, other, absent, silent, unfit])
    hush(live, silent)
    say(hand, run["id"], True, rows=1000)
    say(unfit, run["id"], False, "data_invalid")
    assert standings(live, run["id"]) == {
        hand.name: "ready", other.name: "unheard", absent.name: "never_seen", silent.name: "silent", unfit.name: "unfit",
    }  # fmt: skip
    view = live.operator.post(f"/runs/{run['id']}/start")
    assert set(view["participants"]) == {hand.name, other.name}
    assert view["readiness"] == {"ready": 1, "unheard": 1, "never_seen": 1, "silent": 1, "unfit": 1}
    said = {m["agent"]: (m["takes_part"], m["reason"], m["rows"]) for m in live.operator.every(f"/runs/{run['id']}/readiness")}
    assert said[hand.name] == (True, None, 1000)
    assert said[unfit.name] == (False, "data_invalid", None)

    def told() -> list[str]:
        return [one["evidence"] for one in live.operator.get(f"/runs/{run['id']}/explanation")["symptoms"] if one["code"] == "agents_unfit"]

    pages = logged_in(live)
    assert told() == [f"without {unfit.name} (data_invalid)"]
    assert 'class="s-paused">no part in it (data_invalid)' in pages.get(f"/admin/agents/{unfit.name}").text
    assert "its data fit, 1,000 rows or more" in pages.get(f"/admin/agents/{hand.name}").text
    say(unfit, run["id"], False, "not_consented")
    assert told() == []
    assert "its owner has not consented" in pages.get(f"/admin/agents/{unfit.name}").text
    say(unfit, run["id"], False, "data_invalid")
    live.operator.post(f"/runs/{run['id']}/cancel")
    assert told() == []
    assert "(data_invalid)" not in pages.get(f"/admin/agents/{unfit.name}").text


def test_they_join_when_they_come(live: LiveCoordinator, model: str, hand: Hand) -> None:
    absent, unfit = Hand(live, seen=False), Hand(live)
    run = draft(live, model, [hand, absent, unfit], schedule={"cycles": 3})
    say(unfit, run["id"], False, "not_consented")
    live.operator.post(f"/runs/{run['id']}/start")
    absent.me()
    hand.deliver(hand.take(run["name"]))
    assert set(settled(live, run["id"])["participants"]) == {hand.name, absent.name}
    say(unfit, run["id"], True)
    agent = next(h for h in (hand, absent) if h.name == last_visit(live, run["id"])["meant_for"])
    agent.deliver(agent.take(run["name"]))
    view = settled(live, run["id"])
    assert set(view["participants"]) == {hand.name, absent.name, unfit.name}
    assert view["participants"][0] == hand.name, "who was there first keeps its place"


def test_nobody_there_is_no_start_unless_it_is_meant(live: LiveCoordinator, model: str) -> None:
    absent, unfit = Hand(live, seen=False), Hand(live)
    run = draft(live, model, [absent, unfit])
    say(unfit, run["id"], False, "data_missing")
    with unchanged(live, run["id"]):
        error = refused(operator(live).post(f"/runs/{run['id']}/start"), 409, "nobody_ready")
        refused(operator(live).post(f"/runs/{run['id']}/start", json={"anyway": False}), 409, "nobody_ready")
        refused(operator(live).post(f"/runs/{run['id']}/start", json={"now": True}), 422, "invalid_request")
    assert f"{absent.name} was never seen" in error.message
    assert f"{unfit.name} has no data that fit (data_missing)" in error.message
    view = live.operator.post(f"/runs/{run['id']}/start", {"anyway": True})
    assert (view["state"], set(view["participants"])) == ("running", {absent.name, unfit.name})
    assert absent.take(run["name"]).block == "layers.0"


def test_a_start_with_data_that_do_not_fit_says_that_they_are_the_reason(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = draft(live, model, [hand])
    say(hand, run["id"], False, "data_invalid")
    view = live.operator.post(f"/runs/{run['id']}/start", {"anyway": True})
    assert view["state"] == "paused"
    assert view["reason"].startswith("no agent is left that could try: nobody who takes part has data that fit; 1 excluded: data_invalid")


def test_a_visit_meant_for_who_will_not_come_is_anybodys_at_once(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = draft(live, model, [hand, other], schedule={"agents": "fixed", "cycles": 2})
    live.operator.post(f"/runs/{run['id']}/start")
    assert last_visit(live, run["id"])["meant_for"] == hand.name
    say(hand, run["id"], False, "not_consented")
    assert last_visit(live, run["id"])["meant_for"] is None
    assert "agent_unfit" in events(live, run["id"])
    for _ in range(4):
        other.deliver(other.take(run["name"]))
    assert settled(live, run["id"])["state"] == "completed"


def test_a_silent_agents_visit_is_anybodys_too(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    assert other.claim(run) is None
    hush(live, hand)
    assert other.take(run).block == "layers.0"


@pytest.mark.one_database
@pytest.mark.parametrize("reason", ["data_invalid", "out_of_memory", "disk_limit", "not_consented", "policy_refused"])
def test_what_is_mended_is_asked_again_in_the_same_round(live: LiveCoordinator, model: str, hand: Hand, other: Hand, reason: str) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed", "reassign_after_s": 0})
    run_id = live.operator.get(f"/runs/{run}")["id"]
    hand.give_back(hand.take(run), reason)
    assert hand.claim(run) is None
    assert standings(live, run)[hand.name] == "unfit"
    say(hand, run_id, False, reason if reason != "data_invalid" else "data_missing")
    assert hand.claim(run) is None
    say(hand, run_id, True)
    assert hand.take(run).attempt == 2
    assert "agent_ready" in events(live, run)


@pytest.mark.parametrize("reason", ["non_finite_loss"])
def test_what_no_owner_can_mend_is_not_asked_again(live: LiveCoordinator, model: str, hand: Hand, other: Hand, reason: str) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed", "reassign_after_s": 0})
    run_id = live.operator.get(f"/runs/{run}")["id"]
    hand.give_back(hand.take(run), reason)
    say(hand, run_id, False, "data_invalid")
    say(hand, run_id, True)
    assert hand.claim(run) is None


def test_a_run_that_nobody_is_left_for_goes_on_by_itself_when_somebody_is(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand
) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    run_id = live.operator.get(f"/runs/{run}")["id"]
    hand.give_back(hand.take(run), "data_invalid")
    other.give_back(other.take(run), "data_invalid")
    view = live.operator.get(f"/runs/{run}")
    assert (view["state"], view["reason"].startswith("no agent is left")) == ("paused", True)
    with ThreadPoolExecutor() as pool:
        with one_more_waits(live):
            claim = pool.submit(lambda: other.claim(run, wait=20, refuses=[run_id]))
        say(other, run_id, True)
        assert claim.result() is None, "it is let go, to say anew what it takes"
    assignment = other.take(run)
    view = live.operator.get(f"/runs/{run}")
    assert (view["state"], view["reason"]) == ("running", None)
    other.deliver(assignment)
    assert settled(live, run)["rounds_done"] == 1


def test_what_an_operator_paused_stays_paused(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    run_id = live.operator.get(f"/runs/{run}")["id"]
    hand.give_back(hand.take(run), "other")
    live.operator.post(f"/runs/{run}/pause")
    say(hand, run_id, False, "data_invalid")
    say(hand, run_id, True)
    assert live.operator.get(f"/runs/{run}")["state"] == "paused"


def test_a_run_that_nobody_there_could_go_on_with_says_who_is_missing(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standstill, "PATIENCE", timedelta(seconds=0.5))
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    run_id = live.operator.get(f"/runs/{run}")["id"]
    say(other, run_id, False, "data_invalid")
    hush(live, hand)
    view = wait_for(lambda: (v := live.operator.get(f"/runs/{run}"))["reason"] and v, limit=10)
    assert view["state"] == "paused"
    assert f"1 silent ({hand.name} since" in view["reason"]
    assert f"1 excluded: data_invalid ({other.name})" in view["reason"]
    assert events(live, run).count("run_paused") == 1
    hand.me()
    wait_for(lambda: live.operator.get(f"/runs/{run}")["reason"] is None, limit=10)
    assert hand.take(run).block == "layers.0"


def test_a_run_whose_only_agent_is_revoked_is_paused_and_says_why(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    hand.take(run)
    live.operator.post(f"/agents/{hand.name}/revoke")
    view = wait_for(lambda: (v := live.operator.get(f"/runs/{run}"))["state"] == "paused" and v, limit=10)
    assert view["reason"].startswith("no agent is left")


def test_more_memory_lifts_what_did_not_fit(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    spec = {"compression": {"policy": "auto"}, "schedule": {"agents": "fixed", "reassign_after_s": 0}}
    run = start_run(live, model, [hand, other], **spec)
    assert hand.claim(run, limits={"memory_bytes": 1000}) is None
    wait_for(lambda: "does_not_fit" in events(live, run), limit=5)
    assert hand.claim(run, limits={"memory_bytes": 1000}) is None
    assert hand.claim(run, wait=5, limits={"memory_bytes": 8_000_000_000}) is not None


def test_what_is_said_of_other_runs_is_not_kept(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = draft(live, model, [hand])
    say(other, run["id"], False, "data_invalid")
    say(hand, "run_0123456789abcdef", True)
    assert standings(live, run["id"]) == {hand.name: "unheard"}
    ids = {agent["name"]: agent["id"] for agent in live.operator.every("/agents")}

    def said(of: Hand, most: int = 9) -> list[tuple[str, str | None]]:
        with live.database.reading() as session:
            return [(one.run_id, one.reason) for one in readiness.said_by(session, ids[of.name], most)]

    with live.database.transaction() as session:
        readiness.refused(session, run["id"], ids[hand.name], "asg_0123456789abcdef", None, utcnow())
    assert said(hand) == [], "that it is not asked for a visit is no word of its own"
    say(hand, run["id"], False, "data_invalid")
    second = draft(live, model, [hand])
    say(hand, second["id"], False, "data_missing")
    both = sorted([(run["name"], run["id"], "data_invalid"), (second["name"], second["id"], "data_missing")])
    assert (said(hand), said(hand, 1), said(other)) == ([one[1:] for one in both], [both[0][1:]], [])
    live.operator.post(f"/runs/{run['id']}/cancel")
    assert said(hand) == [(second["id"], "data_missing")], "what has ended needs nothing"


@pytest.mark.one_database
@pytest.mark.parametrize(
    "more",
    [{"columns": ["text"]}, {"reason": "my row 7"}, {"rows": -1}, {"rows": "many"}, {"run_id": "../x"}, {"message": "row 7: secret"}],
)
def test_there_is_no_place_for_anything_of_the_data(live: LiveCoordinator, hand: Hand, more: dict[str, Any]) -> None:
    body = {"runs": [{"run_id": "run_0123456789abcdef", "fits": True, **more}]}
    refused(hand.http.put("/agents/me/readiness", json=body), 422, "invalid_request")


def test_a_new_run_lets_agents_go_to_say_whether_their_data_fit(live: LiveCoordinator, model: str, hand: Hand) -> None:
    before = hand.http.post("/assignments/claim", params={"wait": 0}, json={"runs": []}).headers[OFFERS]
    assert hand.http.post("/assignments/claim", params={"wait": 0}, json={"runs": []}).headers[OFFERS] == before
    with ThreadPoolExecutor() as pool:
        with one_more_waits(live):
            claim = pool.submit(
                lambda: (hand.http.post("/assignments/claim", params={"wait": 20}, json={"runs": []}, timeout=60), time.monotonic())
            )
        draft(live, model, [hand])
        prepared = time.monotonic()
        answer, at = claim.result()
    assert (answer.status_code, answer.headers[OFFERS] == before) == (204, False)
    assert at < prepared + 3


def test_who_comes_late_stands_in_already_in_this_round(live: LiveCoordinator, model: str, hand: Hand) -> None:
    late = Hand(live, seen=False)
    run = start_run(live, model, [hand, late], schedule={"agents": "fixed", "reassign_after_s": 0})
    assert live.operator.get(f"/runs/{run}")["participants"] == [hand.name]
    assert late.take(run).block == "layers.0"


def test_under_an_exposure_budget_nobody_joins_but_stands_in(live: LiveCoordinator, model: str, hand: Hand) -> None:
    late = Hand(live, seen=False)
    spec = {"exposure": {"max_exact_blocks": 3}, "compression": {"policy": "int8"}, "schedule": {"agents": "fixed", "reassign_after_s": 0}}
    run = start_run(live, model, [hand, late], **spec)
    hand.deliver(hand.take(run))
    late.me()
    view = settled(live, run)
    assert view["participants"] == [hand.name], view["reason"]
    assert late.take(run).block == "layers.1"


def test_a_claim_that_refuses_is_let_go_when_a_check_says_that_all_is_well(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand
) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    run_id = live.operator.get(f"/runs/{run}")["id"]
    hand.give_back(hand.take(run), "data_invalid")
    with ThreadPoolExecutor() as pool:
        with one_more_waits(live):
            claim = pool.submit(lambda: hand.claim(run, wait=20, refuses=[run_id]))
        began = time.monotonic()
        say(hand, run_id, True)
        assert claim.result() is None
    assert time.monotonic() - began < 5
    assert hand.take(run).attempt == 2


def test_nobody_is_silent_because_the_coordinator_was_away(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators()
    hand = Hand(live)
    live.stop()
    database = Database(live.settings.url)
    with database.transaction() as session:
        (agent,) = session.scalars(select(Agent).where(Agent.name == hand.name))
        assert agent.last_seen_at is not None
        agent.last_seen_at -= timedelta(hours=1)
    database.close()
    again = coordinators()
    sweep(again)
    assert [a["state"] for a in again.operator.every("/agents")] == ["active"]


def test_what_an_agent_allows_is_noted_though_there_is_no_work(live: LiveCoordinator, hand: Hand) -> None:
    hand.claim("nothing", limits={"memory_bytes": 5_000_000})
    with live.database.reading() as session:
        (agent,) = session.scalars(select(Agent).where(Agent.name == hand.name))
        assert agent.limits.memory_bytes == 5_000_000


def test_a_resume_asks_those_again_who_had_refused_and_believes_the_others(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand
) -> None:
    unfit = Hand(live)
    run = draft(live, model, [hand, other, unfit], schedule={"agents": "first_come"})
    say(unfit, run["id"], False, "data_invalid")
    say(other, run["id"], True, rows=1000)
    live.operator.post(f"/runs/{run['id']}/start")
    hand.give_back(hand.take(run["name"]), "not_consented")
    before = {hand.name: "unfit", other.name: "ready", unfit.name: "unfit"}
    assert standings(live, run["id"]) == before
    live.operator.post(f"/runs/{run['id']}/pause")
    live.operator.post(f"/runs/{run['id']}/resume")
    assert standings(live, run["id"]) == before | {hand.name: "unheard"}
