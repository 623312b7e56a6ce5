"""`explain`: whatever a run waits for is said, with who, until when, and what would help."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Assignment, Event
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.explanations import ExplanationView
from tests.integration.test_readiness import hush, say
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, run_file, settled, start_run, wire

pytestmark = pytest.mark.database_decides


def explain(live: LiveCoordinator, run: str) -> ExplanationView:
    return ExplanationView.model_validate(live.operator.get(f"/runs/{run}/explanation"))


def of_kind(view: ExplanationView, kind: str) -> Any:
    found = [wait for wait in view.waits if wait.kind == kind]
    assert len(found) == 1, view
    return found[0]


def test_from_draft_to_a_lease_to_a_pause(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = live.create_run(run_file(model, [hand, other], schedule={"agents": "fixed"}))["name"]
    draft = explain(live, run)
    assert (draft.state, draft.advice) == ("draft", f"`fedcoord run start {run}`")
    assert draft.since is not None
    live.operator.post(f"/runs/{run}/start")
    waiting = of_kind(explain(live, run), "agent")
    assert (waiting.agent, waiting.block) == (hand.name, "layers.0")
    assert waiting.until is not None, "somebody else may stand in then"
    assert f"waits for {hand.name}, for " in waiting.text
    assert f"{hand.name} does not ask this coordinator" in waiting.text

    assignment = hand.take(run)
    hand.renew(assignment, phase="training", step=3, steps=7, loss=0.5, trouble={"code": "unreachable"})
    lease = of_kind(explain(live, run), "lease")
    assert (lease.agent, lease.block, lease.round) == (hand.name, "layers.0", 0)
    assert "step 3 of 7, loss 0.500" in lease.text
    assert "unreachable" in lease.text
    assert explain(live, run).text.startswith(
        f"0 of {explain(live, run).rounds_total} rounds are done, and round {lease.round} is under way: 1 trained"
    )
    assert lease.until is not None
    assert lease.advice is not None

    before = explain(live, run).since
    live.operator.post(f"/runs/{run}/pause")
    paused = explain(live, run)
    assert (paused.state, paused.advice) == ("paused", f"`fedcoord run resume {run}`")
    assert paused.since is not None
    assert before is not None
    assert paused.since > before
    live.operator.post(f"/runs/{run}/cancel")
    ended = explain(live, run)
    assert ended.waits == []
    assert "cancelled by the operator" in ended.text


def test_nobody_consents(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], schedule={"agents": "first_come"})
    asked = threading.Thread(target=hand.claim, args=("another-run-*", 2))
    asked.start()
    found = wait_for(lambda: (w := of_kind(explain(live, run), "agent")).advice and w, limit=6)
    assert f"{hand.name} waits for work, but not of this run" in found.text
    assert run in found.advice
    asked.join()


def test_who_does_not_come_in_time_is_waited_for_no_more(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed", "reassign_after_s": 0})
    late = of_kind(explain(live, run), "agent")
    assert f"waits for anybody who may take it ({hand.name}, whose it was, has not come in time)" in late.text
    assert late.until is None


def test_who_is_absent_and_who_fails_is_said(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come", "max_attempts": 9})
    for _ in range(2):
        hand.give_back(hand.take(run), "trainer_died", "killed")
    symptoms = {one.code: one for one in explain(live, run).symptoms}
    assert symptoms.keys() >= {"agents_fail"}
    assert f"{hand.name}: 2 × trainer_died" in symptoms["agents_fail"].evidence
    assert "memory" in symptoms["agents_fail"].advice

    work = other.take(run)
    other.deliver(work, {name: t * float("nan") for name, t in other.delta(work).items()})
    settled(live, run)
    rejected = next(one for one in explain(live, run).symptoms if one.code == "deltas_rejected")
    assert other.name in rejected.evidence

    run_id = live.operator.get(f"/runs/{run}")["id"]
    say(other, run_id, False, "data_invalid")
    hush(live, hand)
    stuck = wait_for(lambda: (v := explain(live, run)).state == "paused" and v, limit=15)
    assert hand.name in stuck.text
    assert "by itself" in (stuck.advice or "")


def held_up(live: LiveCoordinator, run: str) -> str | None:
    return next((one.evidence for one in explain(live, run).symptoms if one.code == "held_up"), None)


def backdate(live: LiveCoordinator, work: LeasedAssignment, **columns: Any) -> None:
    with live.database.transaction() as session:
        session.execute(update(Assignment).where(Assignment.id == work.assignment_id).values(**columns))


def test_an_agent_whose_claims_get_through_and_whose_renewals_do_not_is_named(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], schedule={"agents": "first_come"})
    work = hand.take(run)
    assert held_up(live, run) is None
    hour = timedelta(seconds=work.lease_seconds)
    backdate(live, work, lease_expires_at=utcnow() + hour - timedelta(seconds=25))
    assert held_up(live, run) is None, "less than half of a lease"
    backdate(live, work, lease_expires_at=utcnow() + hour - timedelta(seconds=50))
    assert f"{hand.name} took {work.block} 50 s ago and has said nothing since" in (held_up(live, run) or "")
    hand.renew(work, phase="training", step=1, steps=9)
    assert held_up(live, run) is None
    backdate(live, work, lease_expires_at=utcnow() + hour - timedelta(seconds=50))
    assert f"{hand.name} said 50 s ago that it is training, at {work.block}, and nothing since" in (held_up(live, run) or "")


def test_an_agent_whose_transfers_are_cut_is_named(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], schedule={"agents": "first_come", "max_attempts": 9})
    cut = {"code": "not_a_coordinator", "status": 504}
    for visit in range(2):
        assert held_up(live, run) is None
        work = hand.take(run)
        hand.renew(work, phase="sending", trouble=cut)
        if visit == 0:
            hand.give_back(work, "stopping")
    hand.renew(work, phase="sending")
    hand.renew(work, phase="sending", trouble=cut)
    assert f"{hand.name} was held up 3 times: 3 × not_a_coordinator" in (held_up(live, run) or "")
    with live.database.transaction() as session:
        run_id = live.operator.get(f"/runs/{run}")["id"]
        long_ago = utcnow() - timedelta(seconds=50)
        session.execute(update(Event).where(Event.run_id == run_id, Event.code == "not_a_coordinator").values(at=long_ago))
    assert f"{hand.name} is held up while sending, at {work.block}, for 50 s: something else answered" in (held_up(live, run) or "")


def test_there_is_no_explanation_of_what_is_not_there(live: LiveCoordinator) -> None:
    answer = wire(live, live.operator_key).get("/runs/nothing-of-this-name/explanation")
    assert answer.status_code == 404
