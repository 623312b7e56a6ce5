"""An agent that comes is written down in one transaction: its daemon, its sign of life and what it allows; all of it, or nothing."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import AgentError
from fedcybgd.agent.retry import patiently
from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Agent, Event, SpentSignature
from fedcybgd.coordinator.domain.agent import SEEN_EVERY
from fedcybgd.coordinator.services.agents import arrival
from fedcybgd.shared.contract.agents import ClaimRequest, DeclaredLimits, DeviceInfo, EnrolRequest
from fedcybgd.shared.contract.words import DAEMON
from tests.support.live import LiveCoordinator
from tests.support.statements import statements
from tests.support.visits import Hand, events, fresh, refused, start_run

pytestmark = pytest.mark.database_decides
ASKED = ClaimRequest(runs=["nothing"], limits=DeclaredLimits(memory_bytes=1 << 33, disk_bytes=1 << 40))
FIRST, SECOND = "a" * 16, "b" * 16


@pytest.fixture
def quiet(coordinators: Callable[..., LiveCoordinator]) -> LiveCoordinator:
    """A coordinator whose sweeper sleeps, so that every statement is a request's."""
    return coordinators(sweep_every_s=3600)


class Newcomer:
    """An agent as it is: it signs, says which start of its daemon asks, and has asked for nothing yet."""

    def __init__(self, live: LiveCoordinator) -> None:
        signer, self.name = Signer(new_private_key()), fresh("agent")
        token = live.operator.post("/enrolment-tokens", {})["token"]
        Client(live.url).enrol(EnrolRequest(token=token, name=self.name, device=DeviceInfo(), public_key=signer.public_key))
        self.key_id = signer.key_id
        self.client = Client(live.url, signer)
        self.client.as_daemon()

    @property
    def daemon(self) -> str:
        return str(self.client._http.headers[DAEMON])

    def claim(self, limits: DeclaredLimits = ASKED.limits) -> None:
        assert self.client.claim(ASKED.model_copy(update={"limits": limits}), wait=0) is None


def stored(live: LiveCoordinator, name: str) -> Agent:
    with live.database.reading() as session:
        return session.scalars(select(Agent).where(Agent.name == name)).one()


def spent(live: LiveCoordinator, key_id: str) -> int:
    with live.database.reading() as session:
        return session.scalar(select(func.count()).where(SpentSignature.key_id == key_id)) or 0


def written(agent: Agent) -> tuple[object, ...]:
    return agent.state, agent.daemon, agent.former_daemons, agent.limits, agent.last_error


def claim(hand: Hand, daemon: str, memory: int = 1 << 33):  # type: ignore[no-untyped-def]
    asked = {"runs": ["nothing"], "limits": {"memory_bytes": memory}}
    return hand.http.post("/assignments/claim", params={"wait": 0}, json=asked, headers={DAEMON: daemon})


def test_the_first_claim_is_a_look_for_the_key_and_one_transaction_and_later_ones_nothing(quiet: LiveCoordinator) -> None:
    Newcomer(quiet).claim()  # what is open was read
    agent, began = Newcomer(quiet), utcnow()
    assert written(stored(quiet, agent.name)) == ("enrolled", None, {}, DeclaredLimits(), None)
    with statements(quiet) as found:
        agent.claim()
    words = [" ".join(one.split()[: 3 if one.startswith("INSERT") else 2]) for one in found]
    one_transaction = ["INSERT INTO spent_signature", "SELECT agent.id,", "UPDATE agent"]
    assert [word for word in words if not word.startswith("BEGIN")] == ["SELECT agent.id,", *one_transaction], found
    assert words.count("BEGIN IMMEDIATE") == (quiet.database.engine.dialect.name == "sqlite")
    now = stored(quiet, agent.name)
    assert written(now) == ("active", agent.daemon, {}, ASKED.limits, None)
    assert now.last_seen_at is not None
    assert began <= now.last_seen_at <= utcnow()
    assert spent(quiet, agent.key_id) == 1
    with statements(quiet) as found:
        for _ in range(3):
            agent.claim()
    assert found == []
    assert spent(quiet, agent.key_id) == 1


def test_what_fails_before_its_end_has_written_nothing_and_comes_again(quiet: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, whole, failed = Newcomer(quiet), Session.commit, list[str]()

    def cut(session: Session) -> None:
        if not failed and session.new | session.dirty:
            session.flush()
            failed.append("all is sent to the database")
            raise RuntimeError("the machine is gone")
        whole(session)

    monkeypatch.setattr(Session, "commit", cut)
    with pytest.raises(AgentError):  # an answer that says so, or none: the connection ends with it
        agent.claim()
    assert failed
    assert written(stored(quiet, agent.name)) == ("enrolled", None, {}, DeclaredLimits(), None)
    assert spent(quiet, agent.key_id) == 0
    patiently(agent.claim, timeout=20)
    assert written(stored(quiet, agent.name)) == ("active", agent.daemon, {}, ASKED.limits, None)


def test_a_daemon_that_has_the_key_no_more_changes_nothing(quiet: LiveCoordinator) -> None:
    hand = Hand(quiet)
    assert claim(hand, FIRST).status_code == claim(hand, SECOND).status_code == 204
    with quiet.database.transaction() as session:
        row = session.scalars(select(Agent).where(Agent.name == hand.name)).one()
        row.last_seen_at = seen = utcnow() - 2 * SEEN_EVERY
    refused(claim(hand, FIRST, memory=1), 409, "agent_copied")
    now = stored(quiet, hand.name)
    assert now.last_error is not None
    assert (now.daemon, now.limits.memory_bytes, now.last_seen_at) == (SECOND, 1 << 33, seen)
    with quiet.database.reading() as session:
        assert session.scalar(select(func.count()).where(Event.code == "agent_copied", Event.agent_id == now.id)) == 1
    assert claim(hand, SECOND).status_code == 204


def test_one_that_was_revoked_as_it_came_is_told_so_and_changes_nothing(quiet: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    hand, came = Hand(quiet, seen=False), arrival.came

    def late(*given):  # type: ignore[no-untyped-def]
        monkeypatch.undo()
        quiet.operator.post(f"/agents/{hand.name}/revoke")
        return came(*given)

    monkeypatch.setattr(arrival, "came", late)
    refused(claim(hand, FIRST), 403, "agent_revoked")
    assert written(stored(quiet, hand.name)) == ("revoked", None, {}, DeclaredLimits(), None)
    refused(claim(hand, FIRST), 403, "agent_revoked")


def test_of_two_daemons_that_come_at_once_the_database_says_who_was_last(quiet: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is answered last: what was kept in memory of either would be of it."""
    hand, came = Hand(quiet), arrival.came
    committed, go_on = threading.Event(), threading.Event()

    def slowly(*given):  # type: ignore[no-untyped-def]
        agent = came(*given)
        if FIRST in given:
            committed.set()
            assert go_on.wait(10)
        return agent

    monkeypatch.setattr(arrival, "came", slowly)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(claim, hand, FIRST)
        assert committed.wait(10)
        assert claim(hand, SECOND).status_code == 204
        go_on.set()
        assert first.result().status_code == 204
    assert stored(quiet, hand.name).daemon == SECOND
    refused(claim(hand, FIRST), 409, "agent_copied")
    assert claim(hand, SECOND).status_code == 204


def test_a_restart_with_other_limits_is_asked_again_for_what_did_not_fit(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand
) -> None:
    spec = {"compression": {"policy": "auto"}, "schedule": {"agents": "fixed", "reassign_after_s": 0}}
    run = start_run(live, model, [hand, other], **spec)

    def asks(daemon: str, memory: int) -> int:
        asked = {"runs": [run], "limits": {"memory_bytes": memory}}
        answer = hand.http.post("/assignments/claim", params={"wait": 2}, json=asked, headers={DAEMON: daemon}, timeout=60)
        return int(answer.status_code)

    assert asks(FIRST, 1000) == 204
    assert "does_not_fit" in events(live, run)
    assert stored(live, hand.name).limits.memory_bytes == 1000
    assert asks(SECOND, 8_000_000_000) == 200
    assert stored(live, hand.name).limits.memory_bytes == 8_000_000_000
    assert events(live, run).count("agent_ready") == 1


def test_a_sign_of_life_that_is_not_due_is_not_written(quiet: LiveCoordinator) -> None:
    hand = Hand(quiet)
    with quiet.database.transaction() as session:
        row = session.scalars(select(Agent).where(Agent.name == hand.name)).one()
        row.last_seen_at = seen = utcnow() - SEEN_EVERY + timedelta(seconds=20)
    claim(hand, FIRST)
    assert stored(quiet, hand.name).last_seen_at == seen
