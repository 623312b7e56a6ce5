"""Asking for work: who gets which block, when, and how soon."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from fedcybgd.shared.contract.assignments import LeasedAssignment
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, fresh, last_visit, one_more_waits, refused, run_file, settled, start_run, unchanged

pytestmark = pytest.mark.database_decides

Claim = Future[tuple[LeasedAssignment | None, float]]


def waiting(live: LiveCoordinator, pool: ThreadPoolExecutor, hand: Hand, run: str, wait: float = 20) -> Claim:
    """A claim that waits at the coordinator by now; its result is the work and the moment of the answer."""
    before = live.operator.get("/status")["waiting_claims"]
    claim = pool.submit(lambda: (hand.claim(run, wait), time.monotonic()))
    wait_for(lambda: live.operator.get("/status")["waiting_claims"] > before or claim.done())
    return claim


def test_an_idle_claim_is_answered_after_its_wait(hand: Hand) -> None:
    began = time.monotonic()
    answer = hand.http.post("/assignments/claim", params={"wait": 0.5}, json={})
    assert (answer.status_code, answer.content) == (204, b"")
    assert 0.5 <= time.monotonic() - began < 3


@pytest.mark.one_database
@pytest.mark.parametrize("wait", [-1, 61, "long", "nan"])
def test_a_wait_has_bounds(hand: Hand, wait: object) -> None:
    refused(hand.http.post("/assignments/claim", params={"wait": wait}, json={}), 422, "invalid_request")


def test_a_waiting_claim_is_answered_when_a_run_starts(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = live.create_run(run_file(model, [hand]))["name"]
    with ThreadPoolExecutor() as pool:
        claim = waiting(live, pool, hand, run)
        assert not claim.done()
        live.operator.post(f"/runs/{run}/start")
        started = time.monotonic()
        found, answered = claim.result()
    assert found is not None
    assert answered - started < 2
    assert (found.run_name, found.block, found.attempt, found.round, found.cycle) == (run, "layers.0", 1, 0, 0)


def test_a_waiting_claim_is_answered_when_the_round_before_is_applied(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other])
    first = hand.take(run)
    with ThreadPoolExecutor() as pool:
        claim = waiting(live, pool, other, run)
        hand.deliver(first)
        delivered = time.monotonic()
        found, answered = claim.result()
    assert found is not None
    assert found.block == "layers.1"
    assert answered - delivered < 5


def trained_by(live: LiveCoordinator, run: str, hands: list[Hand]) -> list[str]:
    """Do the whole run; which of `hands` did each round. Everybody asks, the others in vain."""
    order = []
    while settled(live, run)["state"] != "completed":
        meant = last_visit(live, run)["meant_for"]
        with unchanged(live, run):
            assert not [h for h in hands if meant not in (None, h.name) and h.claim(run)]
        hand = next(h for h in hands if meant in (None, h.name))
        hand.deliver(hand.take(run))
        order.append(hand.name)
    return order


@pytest.mark.one_database
@pytest.mark.parametrize(("agents", "expected"), [("fixed", [0, 1, 0, 1]), ("rotating", [0, 1, 1, 0])])
def test_each_block_goes_to_the_agent_that_the_run_file_says(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand, agents: str, expected: list[int]
) -> None:
    hands = [hand, other]
    run = start_run(live, model, hands, schedule={"agents": agents, "cycles": 2})
    assert trained_by(live, run, hands) == [hands[i].name for i in expected]


def test_first_come_goes_to_whoever_asks(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come"})
    assert last_visit(live, run)["meant_for"] is None
    first = other.take(run)
    assert hand.claim(run) is None
    other.deliver(first)
    assert hand.take(run).block == "layers.1"


def test_first_come_wakes_somebody_who_may(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = live.create_run(run_file(model, [other], schedule={"agents": "first_come"}))["name"]
    with ThreadPoolExecutor() as pool:
        outsider = waiting(live, pool, hand, run, wait=2.5)  # waits longest, and has no part in the run
        claim = waiting(live, pool, other, run, wait=2.5)
        live.operator.post(f"/runs/{run}/start")
        started = time.monotonic()
        found, answered = claim.result()
        assert found is not None
        assert answered - started < 2
        assert outsider.result()[0] is None


def test_who_has_no_part_in_a_run_gets_nothing_of_it(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand], schedule={"reassign_after_s": 0, "agents": "first_come"})
    with unchanged(live, run):
        assert other.claim(run) is None


def test_an_agent_gets_only_runs_that_it_consents_to(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = live.create_run(run_file(model, [hand]), start=True)
    with unchanged(live, run["id"]):
        assert hand.claim("other-*") is None
        assert hand.claim(run["name"], refuses=[run["id"]]) is None
    found = hand.claim(run["name"][:-1] + "*")
    assert found is not None
    assert found.run_id == run["id"]


def test_a_claim_that_consents_to_nothing_gives_back_what_is_held(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    hand.take(run)
    assert hand.claim("other-*") is None
    visit = last_visit(live, run)
    assert (visit["state"], visit["reason"], visit["agent"]) == ("pending", "consent_withdrawn", None)
    assert hand.take(run).attempt == 2


def test_who_asks_again_gets_the_same_work_under_the_next_attempt(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    first = hand.take(run)
    second = hand.take(run)
    assert (second.assignment_id, second.attempt, first.attempt) == (first.assignment_id, 2, 1)
    assert second.train == first.train, "seeds and settings come from (run, round, block), never from the attempt"
    assert second.manifest == first.manifest
    with unchanged(live, run):
        refused(hand.renew(first), 409, "stale_attempt")
        refused(hand.give_back(first, "stopping"), 409, "stale_attempt")


def test_eight_agents_that_ask_at_once_get_one_assignment_once(live: LiveCoordinator, model: str) -> None:
    hands = [Hand(live) for _ in range(8)]
    run = start_run(live, model, hands, schedule={"agents": "first_come"})
    with ThreadPoolExecutor(8) as pool:
        found = [a for a in pool.map(lambda h: h.claim(run), hands) if a is not None]
    assert [(a.block, a.attempt) for a in found] == [("layers.0", 1)]


def test_a_second_claim_of_an_agent_lets_the_first_go(live: LiveCoordinator, hand: Hand) -> None:
    with ThreadPoolExecutor() as pool:
        first = waiting(live, pool, hand, "nothing", wait=15)
        began = time.monotonic()
        assert hand.claim("nothing", wait=0.2) is None
        assert first.result()[0] is None
        assert first.result()[1] - began < 5


def test_another_stands_in_for_an_agent_that_does_not_come(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed", "reassign_after_s": 0.7})
    assert last_visit(live, run)["meant_for"] == hand.name
    assert other.claim(run) is None
    began = time.monotonic()
    found = other.take(run, wait=10)
    assert found.block == "layers.0"
    assert 0.3 < time.monotonic() - began < 5
    with unchanged(live, run):
        assert hand.claim(run) is None
    other.deliver(found)
    assert settled(live, run)["rounds_done"] == 1


def test_a_late_joiner_may_stand_in_where_a_run_is_open_to_all(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, "all", schedule={"agents": "first_come"})
    late = Hand(live, fresh("late"))
    view = live.operator.get(f"/runs/{run}")
    assert hand.name in view["participants"]
    assert late.name not in view["participants"]
    assignment = late.take(run)
    late.deliver(assignment)
    assert settled(live, run)["rounds_done"] == 1
    live.operator.post(f"/runs/{run}/cancel")


def test_a_revoked_agent_gets_nothing_by_a_claim_that_waits(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come"})
    first = other.take(run)
    with ThreadPoolExecutor() as pool:
        with one_more_waits(live):
            claim = pool.submit(lambda: hand.http.post("/assignments/claim", params={"wait": 20}, json={"runs": [run]}))
        live.operator.post(f"/agents/{hand.name}/revoke")
        other.deliver(first)
        refused(claim.result(), 403, "agent_revoked")
    assert other.take(run).attempt == 1


def test_a_coordinator_stops_at_once_while_agents_ask_again_and_again(
    coordinators: Callable[..., LiveCoordinator], caplog: pytest.LogCaptureFixture
) -> None:
    live = coordinators()
    hands = [Hand(live) for _ in range(8)]
    refusals: list[str] = []

    def ask(hand: Hand) -> None:
        while True:
            try:
                answer = hand.http.post("/assignments/claim", params={"wait": 25}, json={})
            except httpx.TransportError:
                return
            if answer.status_code == 503:
                refusals.append(answer.json()["code"])
                return

    asking = [threading.Thread(target=ask, args=[hand]) for hand in hands]
    for thread in asking:
        thread.start()
    wait_for(lambda: live.operator.get("/status")["waiting_claims"] == len(hands))
    began = time.monotonic()
    live.stop()
    assert time.monotonic() - began < 1.9, "it waited for them, until its two seconds of grace were over"
    for thread in asking:
        thread.join(10)
        assert not thread.is_alive()
    assert set(refusals) <= {"stopping"}
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []
