"""An agent that has nothing to do costs no database: no statement at all, whatever others wait for."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from fedcybgd.coordinator.attendance import KNOWN_FOR_S
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Agent, Assignment, Event, Job
from fedcybgd.coordinator.domain.agent import SEEN_EVERY, AgentState
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.services.upkeep import silence
from fedcybgd.coordinator.wakes.waiting_room import WaitingRoom
from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo
from fedcybgd.shared.contract.words import WAIT
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.statements import statements
from tests.support.visits import Hand, last_visit, refused, run_file

POLLS = 5


@pytest.fixture
def quiet(coordinators: Callable[..., LiveCoordinator]) -> LiveCoordinator:
    """A coordinator whose sweeper sleeps, so that every statement is a request's."""
    return coordinators(sweep_every_s=3600)


@pytest.fixture
def modelled(quiet: LiveCoordinator, bert: Path) -> LiveCoordinator:
    """The same, with a model."""
    quiet.add_model("bert", bert)
    return quiet


def sweep(live: LiveCoordinator) -> None:
    """What the sweeper tells the waiting room each second."""
    live.app.state.waiting.changed()
    wait_for(lambda: not live.app.state.waiting.stale)


def costs_nothing(live: LiveCoordinator, hand: Hand) -> None:
    wait_for(lambda: _no_jobs(live))
    hand.claim("*")  # the first one may look
    with statements(live) as found:
        for wait in (0, 0.05) * POLLS:
            assert hand.claim("*", wait) is None
    assert found == []


def _no_jobs(live: LiveCoordinator) -> bool:
    with live.database.reading() as session:
        return session.scalar(select(Job.id).where(Job.state.in_((JobState.QUEUED, JobState.RUNNING))).limit(1)) is None


def test_it_is_told_for_how_long_to_wait(quiet: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(quiet)

    def told() -> str:
        return hand.http.post("/assignments/claim", params={"wait": 0}, json={"runs": ["*"]}).headers[WAIT]

    assert told() == "25"
    monkeypatch.setattr(WaitingRoom, "__len__", lambda _: 4_000)
    assert told() == "40"
    quiet.settings.silent_after_s = 50
    assert told() == "30"


def test_it_asks_nothing_of_the_database_whatever_others_wait_for(modelled: LiveCoordinator) -> None:
    idle, busy, absent = Hand(modelled), Hand(modelled), Hand(modelled)
    costs_nothing(modelled, idle)  # nothing is pending

    first = modelled.create_run(run_file("bert", [busy]), start=True)
    costs_nothing(modelled, idle)  # another's visit is
    held = busy.take(first["name"])
    costs_nothing(modelled, idle)
    busy.give_back(held, "stopping")
    modelled.operator.post(f"/runs/{first['id']}/pause")
    costs_nothing(modelled, idle)  # that of a paused run
    modelled.operator.post(f"/runs/{first['id']}/cancel")
    costs_nothing(modelled, idle)  # of a cancelled one

    wave = modelled.create_run(run_file("bert", [busy, absent], schedule={"wave": 2, "agents": "fixed"}), start=True)
    costs_nothing(modelled, idle)  # a wave's
    modelled.operator.post(f"/runs/{wave['id']}/cancel")

    awaited = modelled.create_run(run_file("bert", [absent], schedule={"reassign_after_s": 0.01}), start=True)
    time.sleep(0.02)
    sweep(modelled)
    costs_nothing(modelled, idle)  # an absent agent's, which is overdue, and open to nobody else
    modelled.operator.post(f"/runs/{awaited['id']}/cancel")

    others = modelled.create_run(run_file("bert", [absent, busy], schedule={"agents": "first_come"}), start=True)
    costs_nothing(modelled, idle)  # anybody's, but of a run that is not open to it
    modelled.operator.post(f"/runs/{others['id']}/cancel")


def test_it_asks_nothing_while_the_emulator_of_what_it_could_have_is_made(
    modelled: LiveCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedcybgd.coordinator.services.emulators import shards

    hand = Hand(modelled)
    monkeypatch.setattr(shards, "request", lambda *_: None)  # nobody makes it
    monkeypatch.setattr(shards, "request_ahead", lambda *_: None)
    run = modelled.create_run(run_file("bert", [hand]), start=True)
    costs_nothing(modelled, hand)
    monkeypatch.undo()
    with modelled.database.transaction() as session:
        shards.offer_pending(session, run["id"])
    assert hand.claim(run["name"]) is None, "it asks for what is missing"
    assert hand.take(run["name"]).run_id == run["id"], "and is asked when that is there"


def test_an_idle_agent_that_comes_back_gets_what_it_holds(modelled: LiveCoordinator) -> None:
    hand = Hand(modelled)
    run = modelled.create_run(run_file("bert", [hand]), start=True)
    first = hand.take(run["name"])
    assert hand.take(run["name"]).assignment_id == first.assignment_id
    modelled.app.state.attendance.forget([_id_of(modelled, hand)])
    assert hand.take(run["name"]).attempt == 3


def test_a_revoked_key_and_a_rotated_one_are_void_at_once(quiet: LiveCoordinator) -> None:
    gone, rotated = Hand(quiet), Hand(quiet)
    for hand in (gone, rotated):
        assert hand.claim("*") is None  # they are known
    quiet.operator.post(f"/agents/{gone.name}/revoke")
    refused(gone.http.post("/assignments/claim", params={"wait": 0}, json={}), 403, "agent_revoked")
    assert rotated.http.post("/agents/me/key").status_code == 200
    refused(rotated.http.post("/assignments/claim", params={"wait": 0}, json={}), 401, "unauthorized")
    refused(rotated.http.post("/assignments/asg_0123456789abcdef/renew", json={"attempt": 1}), 401, "unauthorized")


def test_a_claim_that_waits_ends_when_its_key_is_replaced(quiet: LiveCoordinator) -> None:
    hand = Hand(quiet)
    answers: list[int] = []
    claim = threading.Thread(target=lambda: answers.append(hand.http.post("/assignments/claim", params={"wait": 30}, json={}).status_code))
    claim.start()
    wait_for(lambda: quiet.operator.get("/status")["waiting_claims"] == 1)
    assert hand.http.post("/agents/me/key").status_code == 200
    claim.join(10)
    assert answers == [204]


def test_what_is_looked_up_while_a_key_is_revoked_is_not_kept(quiet: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedcybgd.coordinator.services.agents import identity

    hand, look_up = Hand(quiet), identity.look_up
    read, go_on = threading.Event(), threading.Event()

    def slowly(*arguments: object) -> identity.Identity:
        found = look_up(*arguments)  # type: ignore[arg-type]
        read.set()
        go_on.wait(10)
        return found

    quiet.app.state.attendance.forget([_id_of(quiet, hand)])
    monkeypatch.setattr(identity, "look_up", slowly)
    claim = threading.Thread(target=hand.claim, args=("*",))
    claim.start()
    assert read.wait(10)
    quiet.operator.post(f"/agents/{hand.name}/revoke")
    go_on.set()
    claim.join(10)
    monkeypatch.undo()
    refused(hand.http.post("/assignments/claim", params={"wait": 0}, json={}), 403, "agent_revoked")


def test_what_is_looked_up_while_others_change_is_kept(quiet: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands who come at once would look each other up again and again."""
    from fedcybgd.coordinator.services.agents import identity

    hand, gone, look_up = Hand(quiet), Hand(quiet), identity.look_up
    quiet.app.state.attendance.forget([_id_of(quiet, hand)])

    def meanwhile(*arguments: object) -> identity.Identity:
        found = look_up(*arguments)  # type: ignore[arg-type]
        monkeypatch.undo()
        quiet.operator.post(f"/agents/{gone.name}/revoke")
        return found

    monkeypatch.setattr(identity, "look_up", meanwhile)
    with statements(quiet) as found:
        hand.claim("*")
        hand.claim("*")
    assert len([s for s in found if "WHERE agent.key_hash" in s]) == 1, found
    refused(gone.http.post("/assignments/claim", params={"wait": 0}, json={}), 403, "agent_revoked")


def test_a_key_is_looked_up_again_after_a_while(quiet: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(quiet)
    hand.claim("*")
    with quiet.database.transaction() as session:  # by somebody who tells nobody
        session.execute(update(Agent).where(Agent.name == hand.name).values(state=AgentState.REVOKED))
    assert hand.claim("*") is None
    monkeypatch.setattr(time, "monotonic", lambda real=time.monotonic: real() + KNOWN_FOR_S)
    answer = hand.http.post("/assignments/claim", params={"wait": 0}, json={})
    monkeypatch.undo()
    refused(answer, 403, "agent_revoked")


def _id_of(live: LiveCoordinator, hand: Hand) -> str:
    with live.database.reading() as session:
        return session.scalars(select(Agent.id).where(Agent.name == hand.name)).one()


@pytest.mark.database_decides
def test_signs_of_life_are_written_together_and_those_of_silent_agents_at_once(quiet: LiveCoordinator) -> None:
    hands = [Hand(quiet) for _ in range(3)]
    for hand in hands:
        hand.claim("*")
    long_ago = utcnow() - 2 * SEEN_EVERY
    with quiet.database.transaction() as session:
        session.execute(update(Agent).values(last_seen_at=long_ago))
    quiet.app.state.attendance.forget([_id_of(quiet, hand) for hand in hands])
    for hand in hands:
        hand.claim("*")
    assert _seen(quiet) == {long_ago}, "not yet"
    with statements(quiet) as found:
        quiet.app.state.waiting._loop.call_soon_threadsafe(lambda: _soon(quiet))
        wait_for(lambda: min(_seen(quiet)) > long_ago)
    assert len([s for s in found if s.startswith("UPDATE agent")]) == 1, "all of them in one"

    with quiet.database.transaction() as session:
        silence.silence(session, utcnow() + timedelta(seconds=1), timedelta())
    assert {agent["state"] for agent in quiet.operator.every("/agents")} == {"silent"}
    hands[0].claim("*")
    states = {agent["name"]: agent["state"] for agent in quiet.operator.every("/agents")}
    assert states[hands[0].name] == "active", "who comes back is planned with at once"


def _soon(live: LiveCoordinator) -> None:
    import asyncio

    live.app.state.writing = asyncio.ensure_future(live.app.state.attendance.write())


def _seen(live: LiveCoordinator) -> set[object]:
    with live.database.reading() as session:
        return set(session.scalars(select(Agent.last_seen_at)))


def test_a_stop_writes_the_signs_of_life(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators(sweep_every_s=3600)
    hand = Hand(live)
    with live.database.transaction() as session:
        session.execute(update(Agent).values(last_seen_at=utcnow() - 2 * SEEN_EVERY))
    live.app.state.attendance.forget([_id_of(live, hand)])
    hand.claim("*")
    live.stop()
    assert min(_seen(live)) > utcnow() - SEEN_EVERY  # type: ignore[type-var]


@pytest.mark.database_decides
def test_a_thousand_agents_that_fall_silent_at_once_are_one_statement_and_one_event(modelled: LiveCoordinator) -> None:
    hands = [Hand(modelled), Hand(modelled)]
    run = modelled.create_run(run_file("bert", hands, schedule={"wave": 2, "agents": "fixed"}), start=True)
    with modelled.database.transaction() as session:
        session.add_all(
            Agent(id=f"agt_{n:016x}", name=f"many-{n}", key_hash=f"{n:064x}", state=AgentState.ACTIVE, device=DeviceInfo(),
                  limits=DeclaredLimits(), version="", enrolled_at=utcnow(), last_seen_at=utcnow())
            for n in range(1000)
        )  # fmt: skip
    with statements(modelled) as found, modelled.database.transaction() as session:
        silence.silence(session, utcnow() + timedelta(seconds=1), timedelta())
    assert len([s for s in found if s.startswith("UPDATE agent")]) == 1, found
    assert len([s for s in found if s.startswith("INSERT INTO event")]) == 1, found
    assert {agent["state"] for agent in modelled.operator.every("/agents")} == {"silent"}
    with modelled.database.reading() as session:
        told = session.scalars(select(Event.message).where(Event.code == "agent_silent")).all()
        assert len(told) == 1
        assert "1002 agents" in told[0]
        assert set(session.scalars(select(Assignment.meant_for).where(Assignment.run_id == run["id"]))) == {None}


@pytest.mark.database_decides
def test_a_renewal_locks_no_run_and_is_one_statement(modelled: LiveCoordinator) -> None:
    hand = Hand(modelled)
    run = modelled.create_run(run_file("bert", [hand]), start=True)
    held = hand.take(run["name"])
    wait_for(lambda: _no_jobs(modelled))
    assert hand.renew(held, phase="training", step=1).status_code == 200, "now its process knows of which run it is"
    for progress in ({"phase": "training", "step": 1}, {"phase": "training", "step": 2}, {"phase": "sending", "moved": 2**62}, {}):
        with statements(modelled) as found:
            assert hand.renew(held, **progress).json()["go_on"] is True
        assert [s.split()[:2] for s in found if not s.startswith("BEGIN")] == [["UPDATE", "assignment"]], (progress, found)
        assert "FOR UPDATE" not in found[-1]
    refused(hand.http.post(f"/assignments/{held.assignment_id}/renew", json={"attempt": 9}), 409, "stale_attempt")
    modelled.operator.post(f"/runs/{run['id']}/cancel")
    assert hand.renew(held).json()["go_on"] is False
    assert last_visit(modelled, run["id"])["state"] == "leased"
