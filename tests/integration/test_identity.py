"""An agent knows its coordinator by an identity: another one at the same address says nothing to it."""

from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import update

from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import AnotherCoordinator, KeyRefused
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Event
from fedcybgd.coordinator.services.records import events, instance
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.assignments import Progress, Trouble
from fedcybgd.shared.contract.words import COORDINATOR
from tests.integration.conftest import Hand
from tests.support.live import LiveCoordinator
from tests.support.visits import fresh, start_run


def test_every_answer_says_which_coordinator_gave_it(live: LiveCoordinator) -> None:
    http = Client(live.url)._http
    said = {http.get(path).headers[COORDINATOR] for path in ("/health", "/agents/me", "/nothing", "/runs/x", "/../docs")}
    said |= {http.post("/assignments/claim", content=b"{").headers[COORDINATOR]}
    with live.database.transaction() as session:
        assert said == {instance.identity(session, utcnow())}, "and it is the same after a restart"


def test_it_is_learned_at_enrolment_and_another_home_is_waited_out(live: LiveCoordinator, tmp_path: Path) -> None:
    mine = live.enrol(fresh("agent"))
    key = mine._http.headers["Authorization"].removeprefix("Bearer ")
    assert mine.me()
    known = mine.coordinator
    assert known is not None
    other = LiveCoordinator(tmp_path / "another home")
    try:
        elsewhere = Client(other.url, key, known)
        for call in (elsewhere.me, lambda: elsewhere.claim(ClaimRequest(), 0)):
            with pytest.raises(AnotherCoordinator):
                call()
    finally:
        other.stop()
    with pytest.raises(KeyRefused):
        Client(live.url, "fca_wrong", known).me()


def test_an_agent_buries_nothing_under_what_it_tells(
    live: LiveCoordinator, model: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "OFTEN", 3)
    assignment = hand.take(start_run(live, model, [hand]))
    for _ in range(6):
        hand.renew(assignment, phase="sending")
        hand.renew(assignment, phase="sending", trouble={"code": "unreachable"})
    hand.renew(assignment, phase="sending")
    hand.renew(assignment, phase="sending", trouble={"code": "proxy_body_limit"})
    mine = [e["code"] for e in live.operator.every("/events", agent=hand.name) if e["level"] == "warning"]
    assert sorted(mine) == ["proxy_body_limit", *3 * ["unreachable"]]
    with live.database.transaction() as session:
        session.execute(update(Event).where(Event.code == "unreachable").values(at=utcnow() - events.WITHIN))
    hand.renew(assignment, phase="sending")
    hand.renew(assignment, phase="sending", trouble={"code": "unreachable"})
    assert [e["code"] for e in live.operator.every("/events", agent=hand.name)].count("unreachable") == 4


def test_an_agent_that_is_ready_and_unfit_in_turns_is_told_of_so_often_and_no_more(
    live: LiveCoordinator, model: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "OFTEN", 3)
    run = start_run(live, model, [hand])
    run_id = live.operator.get(f"/runs/{run}")["id"]
    for turn in range(10):
        for fits in (False, True):
            said = {"run_id": run_id, "fits": fits, "reason": None if fits else "data_invalid"}
            assert hand.http.put("/agents/me/readiness", json={"runs": [said]}).status_code == 204
            assert live.state_of(run) == ("running" if fits else "paused"), "what it says counts all the same"
        if turn > 4:
            assert hand.give_back(hand.take(run), "data_invalid").status_code == 200
    told = Counter(e["code"] for e in live.operator.every("/events", run=run))
    of_it = ("agent_unfit", "agent_ready", "data_invalid", "run_paused", "run_resumed")
    assert {code: told[code] for code in of_it} == dict.fromkeys(of_it, 3)


def test_an_agent_that_fits_by_its_limits_and_does_not_in_turns_is_told_of_so_often_and_no_more(
    live: LiveCoordinator, model: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "OFTEN", 3)
    run = start_run(live, model, [hand], compression={"policy": "auto"})
    for memory in range(1, 7):
        assert hand.claim(run, limits={"memory_bytes": memory}) is None
    assert [e["code"] for e in live.operator.every("/events", run=run)].count("does_not_fit") == 3


def test_what_holds_a_visit_up_is_told_to_the_operator_once(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    trouble = Trouble(code="proxy_body_limit", status=413, bytes=80_123)
    progress = Progress(phase="sending", trouble=trouble).model_dump()
    for _ in range(3):
        assert hand.renew(assignment, **progress).status_code == 200
    view = live.operator.get(f"/runs/{run}")
    [event] = [e for e in live.operator.get("/status")["last_errors"] if e["code"] == "proxy_body_limit" and hand.name in e["message"]]
    assert "413" in event["message"]
    assert "80,123 bytes" in event["message"]
    assert view["state"] == "running"
    [waits] = [wait["text"] for wait in live.operator.get(f"/runs/{run}/explanation")["waits"] if wait["kind"] == "lease"]
    assert "held up: a proxy on the way refused an upload: raise its limit of body sizes (status 413, 80,123 bytes)" in waits
    visit = next(a for a in live.operator.get(f"/runs/{run}/assignments") if a["id"] == assignment.assignment_id)
    assert (visit["state"], visit["attempt"]) == ("leased", 1), "no attempt is lost by it"
