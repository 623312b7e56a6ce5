"""Leases: renewed, lapsed, given back, taken away; and attempts, which fence off what comes too late."""

from datetime import datetime, timedelta
from typing import get_args

import pytest
from safetensors.torch import save

from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Assignment
from fedcybgd.coordinator.domain.assignment import LEFT_TO_OTHERS
from fedcybgd.shared.contract.assignments import COORDINATORS_OWN, LASTING_REASONS, ReturnReason
from fedcybgd.shared.contract.digests import digest_of
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, events, last_visit, operator, refused, settled, start_run, state_of, sweep, unchanged, versions

pytestmark = pytest.mark.database_decides


def pass_by(live: LiveCoordinator, assignment_id: str, time: timedelta) -> timedelta:
    """Let the lease be so much older; what is left of it."""
    with live.database.transaction() as session:
        row = session.get_one(Assignment, assignment_id)
        assert row.lease_expires_at is not None
        row.lease_expires_at -= time
        return row.lease_expires_at - utcnow()


def run_out(live: LiveCoordinator, assignment_id: str) -> None:
    """Let the lease end now, as if its time had passed."""
    pass_by(live, assignment_id, timedelta(days=1))
    wait_for(lambda: _state(live, assignment_id) == "pending", limit=5)


def _state(live: LiveCoordinator, assignment_id: str) -> str:
    with live.database.reading() as session:
        return session.get_one(Assignment, assignment_id).state


def test_a_renewal_extends_the_lease_and_shows_the_progress(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], lease_s=60)
    assignment = hand.take(run)
    for step in range(4):  # three minutes on a lease of one
        left = pass_by(live, assignment.assignment_id, timedelta(seconds=45))
        assert left < timedelta(seconds=16)
        answer = hand.renew(assignment, phase="training", step=step, steps=4, loss=1.5).json()
        assert answer == {"lease_seconds": 60.0, "go_on": True, "reason": None}
        sweep(live)
    assert pass_by(live, assignment.assignment_id, timedelta()) > timedelta(seconds=50)
    visit = last_visit(live, run)
    assert (visit["state"], visit["attempt"], visit["progress"]["step"]) == ("leased", 1, 3)
    lease = next(x for x in live.operator.get("/status")["leases"] if x["run"] == run)
    assert (lease["agent"], lease["progress"]["loss"]) == (hand.name, 1.5)
    assert datetime.fromisoformat(lease["expires_at"]) == datetime.fromisoformat(visit["lease_expires_at"])


def test_a_lease_that_is_not_renewed_lapses_and_the_late_delta_is_refused(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    first = hand.take(run)
    data = save(hand.delta(first))
    assert hand.put(first, data).status_code == 200
    run_out(live, first.assignment_id)
    visit = last_visit(live, run)
    assert (visit["reason"], visit["agent"], visit["lease_expires_at"]) == ("lease_lapsed", None, None)
    assert "lease_lapsed" in events(live, run)
    blocks = state_of(live, run)["blocks"]
    for late in (hand.submit(first, digest_of(data)), hand.renew(first), hand.give_back(first, "stopping"), hand.put(first, b"x")):
        refused(late, 409, "lease_lost")
    second = hand.take(run)
    assert (second.assignment_id, second.attempt) == (first.assignment_id, 2)
    for late in (hand.submit(first, digest_of(data)), hand.renew(first), hand.give_back(first, "stopping")):
        assert refused(late, 409, "stale_attempt").detail["attempt"] == 2
    assert state_of(live, run)["blocks"] == blocks
    # The same bytes under the new attempt: nothing of the upload was lost.
    assert hand.offset(second, digest_of(data)) == {"offset": len(data), "complete": False}
    assert hand.submit(second, digest_of(data)).status_code == 202
    assert settled(live, run)["rounds_done"] == 1
    assert versions(live, run)["layers.0"] == 1


def test_after_a_lapse_another_agent_may_have_it(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come"})
    first = hand.take(run)
    data = save(hand.delta(first))
    hand.put(first, data)
    run_out(live, first.assignment_id)
    second = other.take(run)
    assert (second.assignment_id, second.attempt) == (first.assignment_id, 2)
    with unchanged(live, run):
        refused(hand.submit(first, digest_of(data)), 409, "stale_attempt")
        refused(hand.submit(first, digest_of(data), attempt=2), 409, "lease_lost")
        refused(hand.http.get(f"/assignments/{first.assignment_id}"), 404, "not_found")


def test_the_lease_is_the_holders_alone(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    hand.put(assignment, data[:100], digest=digest_of(data))
    with unchanged(live, run):
        for answer in (
            other.renew(assignment), other.give_back(assignment, "stopping"), other.put(assignment, data, digest=digest_of(data)),
            other.submit(assignment, digest_of(data)),
            other.http.get(f"/assignments/{assignment.assignment_id}/upload/{digest_of(data)}"),
            other.http.get(f"/assignments/{assignment.assignment_id}/shards/{assignment.manifest.blocks[0].digest}"),
        ):  # fmt: skip
            refused(answer, 409, "lease_lost")
        refused(other.http.get(f"/assignments/{assignment.assignment_id}"), 404, "not_found")
    assert hand.offset(assignment, digest_of(data))["offset"] == 100
    assert hand.http.get(f"/assignments/{assignment.assignment_id}").json()["state"] == "leased"


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("asg_0123456789abcdef", 404, "not_found"),
        ("asg_0", 422, "invalid_request"),
        ("a b", 422, "invalid_request"),
        ("x" * 61, 422, "invalid_request"),
    ],
)
def test_an_assignment_that_is_none(hand: Hand, name: str, status: int, code: str) -> None:
    for path, body in (("renew", {"attempt": 1}), ("return", {"attempt": 1, "reason": "other"})):
        refused(hand.http.post(f"/assignments/{name}/{path}", json=body), status, code)


REASONS = [pytest.param(r, marks=[] if r in ("other", "out_of_memory") else pytest.mark.one_database) for r in get_args(ReturnReason)]


@pytest.mark.parametrize("reason", REASONS)
def test_work_that_is_given_back_goes_to_whom_the_reason_allows(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand, reason: str
) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    first = hand.take(run)
    blocks = state_of(live, run)["blocks"]
    given = hand.give_back(first, reason, "a message").json()
    assert (given["state"], given["reason"], given["attempt"]) == ("pending", reason, 1)
    refused(hand.give_back(first, reason), 409, "lease_lost")
    lasting = reason in LASTING_REASONS | COORDINATORS_OWN
    anybodys = lasting or reason in LEFT_TO_OTHERS
    assert last_visit(live, run)["meant_for"] == (None if anybodys else hand.name)
    assert (reason in events(live, run)) == (reason != "stopping")
    agent = next(a for a in live.operator.every("/agents") if a["name"] == hand.name)
    assert agent["last_error"] == (None if reason == "stopping" else f"{reason}: a message")
    if lasting:
        assert hand.claim(run) is None, "it would fail for the same reason again"
    second = (other if lasting else hand).take(run)
    assert (second.assignment_id, second.attempt) == (first.assignment_id, 2)
    assert state_of(live, run)["blocks"] == blocks
    assert live.operator.get(f"/runs/{run}")["state"] == "running"


@pytest.mark.one_database
@pytest.mark.parametrize("body", [{"reason": "bored"}, {"reason": "other", "message": "x" * 2001}, {"reason": "other", "loss": 1}, {}])
def test_only_known_reasons_are_taken(live: LiveCoordinator, model: str, hand: Hand, body: dict[str, object]) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    with unchanged(live, run):
        refused(hand.http.post(f"/assignments/{assignment.assignment_id}/return", json={"attempt": 1, **body}), 422, "invalid_request")


def test_too_many_failures_pause_the_run_with_the_reason_and_resume_goes_on(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], schedule={"max_attempts": 2})
    hand.give_back(hand.take(run), "stopping")  # no failure
    hand.give_back(hand.take(run), "other", "the first time")
    assert live.operator.get(f"/runs/{run}")["state"] == "running"
    run_out(live, hand.take(run).assignment_id)
    view = live.operator.get(f"/runs/{run}")
    assert (view["state"], "2 attempts failed" in view["reason"], "lease_lapsed" in view["reason"]) == ("paused", True, True)
    assert "run_paused" in events(live, run)
    assert hand.claim(run) is None
    live.operator.post(f"/runs/{run}/resume")
    assignment = hand.take(run)
    assert assignment.attempt == 4
    hand.give_back(assignment, "other")  # failures before the resume are forgotten
    assert live.operator.get(f"/runs/{run}")["state"] == "running"
    hand.deliver(hand.take(run))
    assert settled(live, run)["rounds_done"] == 1


def test_a_run_without_an_agent_left_is_paused_and_resume_asks_all_again(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand
) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    hand.give_back(hand.take(run), "data_invalid", "no such column")
    assert live.operator.get(f"/runs/{run}")["state"] == "running"
    other.give_back(other.take(run), "out_of_memory")
    view = live.operator.get(f"/runs/{run}")
    assert view["state"] == "paused"
    assert view["reason"].startswith("no agent is left")
    live.operator.post(f"/runs/{run}/resume")
    assert hand.take(run).attempt == 3


def test_what_a_revoked_agent_holds_goes_to_another(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed", "cycles": 2})
    first = hand.take(run)
    assert other.claim(run) is None
    live.operator.post(f"/agents/{hand.name}/revoke")
    refused(hand.renew(first), 403, "agent_revoked")
    second = other.take(run)
    assert (second.assignment_id, second.attempt) == (first.assignment_id, 2)
    for _ in range(4):  # all that is left, also the visits that were planned for the revoked one
        other.deliver(other.take(run))
    assert settled(live, run)["state"] == "completed"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_do_not_get_into_the_books(live: LiveCoordinator, model: str, hand: Hand, value: str) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    body = '{"attempt": 1, "progress": {"phase": "training", "loss": VALUE}}'.replace("VALUE", value)
    with unchanged(live, run):
        path = f"/assignments/{assignment.assignment_id}/renew"
        refused(hand.http.post(path, content=body, headers={"Content-Type": "application/json"}), 422, "invalid_request")
    assert operator(live).get("/status").status_code == 200


def test_a_message_with_odd_characters_is_kept_readable(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assert hand.give_back(hand.take(run), "other", "a\0b <script>\u202e😀").status_code == 200
    agent = next(a for a in live.operator.every("/agents") if a["name"] == hand.name)
    assert agent["last_error"] == "other: a\ufffdb <script>😀"
