"""Who renews a lease and does not get on loses it, and others have it at once."""

from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Assignment
from fedcybgd.coordinator.domain.progress import Attempt
from fedcybgd.coordinator.services.path.renew import renew
from fedcybgd.coordinator.services.upkeep import leases
from fedcybgd.shared.contract.assignments import LeasedAssignment, Progress, RenewRequest, Trouble
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, events, last_visit, refused, settled, start_run, sweep

FIELDS = ("leased_at", "progressed_at", "ends_at", "waiting_since")


def age(live: LiveCoordinator, assignment: LeasedAssignment, seconds: float) -> None:
    """Let so much time pass for it; the lease holds."""
    with live.database.transaction() as session:
        row = session.get_one(Assignment, assignment.assignment_id)
        for field in FIELDS:
            if (at := getattr(row, field)) is not None:
                setattr(row, field, at - timedelta(seconds=seconds))


def row(live: LiveCoordinator, assignment: LeasedAssignment) -> Any:
    with live.database.reading() as session:
        return session.get_one(Assignment, assignment.assignment_id)


@pytest.mark.database_decides
def test_who_stands_still_loses_its_visit_though_it_renews(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    held = hand.take(run)
    assert held.stall_s == 60
    for step in range(4):
        age(live, held, 50)
        assert hand.renew(held, phase="training", step=step, steps=100).json()["go_on"] is True
    age(live, held, 59)
    assert hand.renew(held, phase="training", step=3, steps=100).json() == {"lease_seconds": 60.0, "go_on": True, "reason": None}
    assert other.claim(run) is None
    age(live, held, 1)
    answer = hand.renew(held, phase="training", step=3, steps=100, loss=0.5).json()
    assert (answer["go_on"], answer["reason"]) == (False, "no_progress")
    visit = last_visit(live, run)
    assert (visit["state"], visit["reason"], visit["meant_for"]) == ("pending", "no_progress", None)
    assert "no_progress" in events(live, run)
    agent = next(a for a in live.operator.every("/agents") if a["name"] == hand.name)
    assert "in phase training, step 3 of 100" in agent["last_error"]
    refused(hand.renew(held, phase="training", step=4, steps=100), 409, "lease_lost")
    other.deliver(other.take(run))  # at once
    assert settled(live, run)["rounds_done"] == 1


def test_renewals_for_ever_end_with_the_attempts_life(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    """Whatever it says of progress: nobody can look whether it is true."""
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    held = hand.take(run)
    for step in range(1, 61):
        age(live, held, 59.5)
        assert hand.renew(held, phase="training", step=step, steps=100).json()["go_on"] is True
    age(live, held, 59.5)
    assert hand.renew(held, phase="training", step=61, steps=100).json()["reason"] == "visit_too_long"
    assert other.take(run).attempt == 2


def test_another_agents_renewal_ends_nothing(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    held = hand.take(run)
    age(live, held, 100)
    refused(other.renew(held), 409, "lease_lost")
    refused(hand.renew(held, attempt=2), 409, "stale_attempt")
    assert last_visit(live, run)["state"] == "leased"


def test_bytes_that_move_are_progress_and_a_trouble_that_is_told_is_waited_for(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    held = hand.take(run)
    for moved in (1, 2, 3):
        age(live, held, 59)
        assert hand.renew(held, phase="fetching", moved=moved).json()["go_on"] is True
    for _ in range(3):
        age(live, held, 100)
        assert hand.renew(held, phase="sending", moved=3, trouble={"code": "proxy_body_limit"}).json()["go_on"] is True
    assert hand.renew(held, phase="sending", moved=3).json()["go_on"] is True
    age(live, held, 61)
    assert hand.renew(held, phase="sending", moved=3).json()["go_on"] is False


def test_a_slow_agent_is_given_the_time_that_it_took_before(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], train={"steps": 1})
    held = hand.take(run)
    age(live, held, 900)  # one step of a quarter of an hour
    body = {
        "attempt": 1,
        "digest": "",
        "metrics": {"steps": 1, "rows": 1, "tokens": 1, "loss_first": 1, "loss_last": 1, "seconds": 120, "tokens_per_s": 1},
    }
    from safetensors.torch import save

    from fedcybgd.shared.contract.digests import digest_of

    data = save(hand.delta(held))
    assert hand.put(held, data).status_code == 200
    assert hand.http.post(f"/assignments/{held.assignment_id}/delta", json={**body, "digest": digest_of(data)}).status_code == 202
    settled(live, run)
    again = hand.take(run)
    assert again.stall_s == pytest.approx(1200, abs=10), "ten of its steps, by what it said"
    lives = row(live, again).ends_at - row(live, again).leased_at
    assert timedelta(seconds=9000) <= lives < timedelta(seconds=9400), "ten times as long as it took by our clock"


def test_an_absence_of_the_coordinator_is_held_against_nobody(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    held = hand.take(run)
    assert hand.renew(held, phase="training", step=1, steps=9).json()["go_on"] is True
    age(live, held, 5000)
    with live.database.transaction() as session:
        leases.after_absence(session, utcnow(), timedelta(seconds=5000))
    sweep(live)
    assert hand.renew(held, phase="training", step=1, steps=9).json()["go_on"] is True


def test_nothing_is_longer_than_a_week_by_a_clock_that_was_ahead(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    held = hand.take(run)
    age(live, held, -365 * 86_400)
    with live.database.transaction() as session:
        leases.after_absence(session, utcnow(), timedelta())
    found = row(live, held)
    assert found.progressed_at <= utcnow()
    assert found.ends_at <= utcnow() + timedelta(days=7)
    assert found.lease_expires_at <= utcnow() + timedelta(seconds=61)


SAID = (
    None, Progress(phase="training", step=3), Progress(phase="training", step=3, loss=0.5), Progress(phase="training", step=2**62),
    Progress(phase="loading", moved=5), Progress(phase="loading", moved=2**62), Progress(phase="fetching", moved=5), Progress(phase="fetching"),
    Progress(phase="sending", moved=5, trouble=Trouble(code="unreachable")),
)  # fmt: skip

CASES = [*product(SAID, SAID, (None, 58.5, 60), (None,)), *product(SAID[:2], SAID[:2], (None, 0, 58.5, 59.99, 60, 61), (None, 0, 0.01))]
"""What was said last, what is said now, how long ago it got on, how much of the attempt is left: all pairs, and all moments of a few"""


@pytest.mark.database_decides
def test_the_database_sees_the_same_progress_as_the_rules(live: LiveCoordinator, model: str, hand: Hand) -> None:
    """One statement renews; whether the agent gets on, and whether the attempt is over, is as `Attempt` has it."""
    held = hand.take(start_run(live, model, [hand]))
    now, seen = utcnow(), set()
    with live.database.transaction() as session:
        row = session.get_one(Assignment, held.assignment_id)
        before = {name: getattr(row, name) for name in ("leased_at", "progressed_at", "patience_s", "ends_at", "progress")}
        for last, said, waited, left in CASES:
            row.patience_s, row.progress = 60, last
            row.progressed_at = None if waited is None else now - timedelta(seconds=waited)
            row.ends_at = None if left is None else now + timedelta(seconds=left)
            attempt = Attempt(row.leased_at, row.progressed_at, row.patience_s, row.ends_at, last)
            over, case = attempt.over(said, now), (last, said, waited, left)
            seen.add(over and over[0])
            if over is not None and (last, said) != (SAID[1], SAID[1]):
                continue  # each takes the visit away: some are enough
            session.flush()
            nested = session.begin_nested()
            answer = renew(session, held.assignment_id, held_by(row), RenewRequest(attempt=held.attempt, progress=said), now)
            session.expire_all()
            assert answer.reason == (over and over[0]), case
            if over is None:
                assert row.progress == (last if said is None else said), case
                got_on = row.progressed_at == now
                assert got_on is (attempt.got_on(said) or waited in (None, 0)), case
            nested.rollback()
            session.expire_all()
        for name, value in before.items():
            setattr(row, name, value)
    assert seen == {None, "no_progress", "visit_too_long"}


def held_by(row: Assignment) -> str:
    assert row.agent_id is not None
    return row.agent_id
