"""Keys of agents end where the coordinator says so; an agent makes another one in time, by itself, and is told what to do where it did not."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent import credentials, enrolment, reaching
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import KeyRefused, Unreachable
from fedcybgd.agent.key_life import KeyLife
from fedcybgd.agent.settings import Home, template
from fedcybgd.agent.worker import Worker
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Agent
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, fresh, refused, wire

HOUR = 3600.0


@pytest.fixture
def ending(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> LiveCoordinator:
    """New keys hold for an hour."""
    monkeypatch.setattr(live.app.state.settings, "agent_keys_hold_s", HOUR)
    return live


def enrolled(live: LiveCoordinator, place: Path) -> Home:
    home = Home(place)
    token = live.operator.post("/enrolment-tokens", {})["token"]
    enrolment.enrol(home, live.url, token, fresh("ends"), template(live.url, None, ["none"]))
    return home


def client_of(home: Home) -> Client:
    return reaching.client(home, *reaching.load(home), credentials.load(home))


def view(live: LiveCoordinator, name: str) -> Any:
    return next(a for a in live.operator.every("/agents") if a["name"] == name)


def let_expire(live: LiveCoordinator, agent_id: str, seconds: float = 1.0) -> None:
    """As if the key had been made so much more than an hour ago."""
    with live.database.transaction() as session:
        session.get_one(Agent, agent_id).key_expires_at = utcnow() - timedelta(seconds=seconds)
    live.app.state.attendance.forget([agent_id])


def test_a_key_ends_where_the_coordinator_says_so_and_it_is_told_to_all(
    live: LiveCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for_good = enrolled(live, tmp_path / "for good")
    monkeypatch.setattr(live.app.state.settings, "agent_keys_hold_s", HOUR)
    ends = enrolled(live, tmp_path / "ends")
    told = [client_of(home).me().key_ends_in_s for home in (for_good, ends)]
    assert told[0] is None
    assert told[1] is not None
    assert HOUR - 60 < told[1] <= HOUR
    shown = [view(live, credentials.load(home).name)["key_expires_at"] for home in (for_good, ends)]
    assert shown[0] is None
    assert shown[1] is not None


@pytest.mark.parametrize("signs", [True, False])
def test_an_expired_key_opens_nothing_and_its_owner_is_told_what_to_do(ending: LiveCoordinator, tmp_path: Path, signs: bool) -> None:
    if signs:
        home = enrolled(ending, tmp_path)
        agent_id, name = credentials.load(home).agent_id, credentials.load(home).name
        let_expire(ending, agent_id)
        with pytest.raises(KeyRefused, match=f"fedcoord agents rotate {name}.*rotate-key --token-file") as said:
            client_of(home).me()
        assert said.value.code == "agent_key_expired", "the daemon ends, and says why"
        return
    hand = Hand(ending)
    hand.claim("nothing")
    let_expire(ending, view(ending, hand.name)["id"])
    for answer in (
        hand.http.get("/agents/me"),
        hand.http.post("/assignments/claim", params={"wait": 0}, json={}),
        hand.http.post("/agents/me/key"),
        hand.http.post("/assignments/asg_0000000000000000/renew", json={"attempt": 1}),
    ):
        refused(answer, 401, "agent_key_expired")


def test_a_key_that_is_known_ends_in_its_second_and_nobody_is_asked(ending: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending.app.state.settings, "agent_keys_hold_s", 1.0)
    hand = Hand(ending)
    assert hand.http.post("/assignments/claim", params={"wait": 0}, json={}).status_code == 204
    wait_for(lambda: hand.http.post("/assignments/claim", params={"wait": 0}, json={}).status_code == 401, limit=10)


def test_the_operator_makes_a_token_for_whoever_was_away_too_long(ending: LiveCoordinator, tmp_path: Path) -> None:
    home = enrolled(ending, tmp_path)
    mine = credentials.load(home)
    let_expire(ending, mine.agent_id, seconds=90 * 86_400)
    token = ending.operator.post(f"/agents/{mine.name}/reissue", {})["token"]
    enrolment.enrol_again(home, Client(ending.url), token)
    me = client_of(home).me()
    assert (me.agent_id, me.name) == (mine.agent_id, mine.name)
    assert me.key_ends_in_s is not None
    assert me.key_ends_in_s > HOUR - 60


def worker_of(home: Home) -> tuple[Worker, Client]:
    config, rules = reaching.load(home)
    client = reaching.client(home, config, rules, credentials.load(home))
    client.me()
    return Worker(home, config, client), client


def test_an_agent_makes_another_key_when_half_of_its_time_is_over(ending: LiveCoordinator, tmp_path: Path) -> None:
    home = enrolled(ending, tmp_path)
    worker, client = worker_of(home)
    first = credentials.load(home)
    worker._renew_key()
    assert credentials.load(home) == first, "there is time"
    client.key_life = KeyLife(0.0)
    worker._renew_key()
    second = credentials.load(home)
    assert second.private_key != first.private_key
    assert client.me().name == first.name, "it goes on with the new one"
    with pytest.raises(KeyRefused, match="not known"):
        reaching.client(home, *reaching.load(home), first).me()
    assert client.key_life is not None
    assert not client.key_life.is_half_over()
    acts = [e["act"] for e in wire(ending, ending.operator_key).get("/audit", params={"limit": 1000}).json() if e["name"] == first.name]
    assert "POST /v1/agents/me/key" in acts


def test_an_answer_that_is_lost_leaves_the_agent_with_the_key_that_counts(
    ending: LiveCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedcybgd.agent.retry._wait", lambda _error, _failures: 0.0)
    home = enrolled(ending, tmp_path)
    worker, client = worker_of(home)
    whole, asked = Client.rotate_key, list[str | None]()

    def lost_once(self: Client, public_key: str | None = None) -> str | None:
        asked.append(public_key)
        answer = whole(self, public_key)
        if len(asked) == 1:
            raise Unreachable("the line was cut")
        return answer

    monkeypatch.setattr(Client, "rotate_key", lost_once)
    client.key_life = KeyLife(0.0)
    worker._renew_key()
    assert len(asked) == 1, "the first had come through"
    assert client.me().name == credentials.load(home).name
    assert credentials.load(home).next_private_key is None


def test_a_key_that_is_heard_late_is_the_one_that_counts(ending: LiveCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request waited on its way until its sender had given it up, and asked which key counts: the old one, then."""
    monkeypatch.setattr("fedcybgd.agent.retry._wait", lambda _error, _failures: 0.0)
    home = enrolled(ending, tmp_path)
    worker, client = worker_of(home)
    whole, on_the_way = Client.rotate_key, list[str | None]()

    def late(self: Client, public_key: str | None = None) -> str | None:
        if not on_the_way:
            on_the_way.append(public_key)
            raise Unreachable("it takes too long")
        if len(on_the_way) == 1:
            on_the_way.append(public_key)
            whole(self, on_the_way[0])
        return whole(self, public_key)

    monkeypatch.setattr(Client, "rotate_key", late)
    client.key_life = KeyLife(0.0)
    worker._renew_key()
    assert client.me().name == credentials.load(home).name
    assert on_the_way[0] == on_the_way[1], "another would have made the first one void"


def test_when_to_renew_does_not_depend_on_when_it_is_asked(ending: LiveCoordinator, tmp_path: Path) -> None:
    home = enrolled(ending, tmp_path)
    for over, due in ((0.2, False), (0.4, False), (0.6, True)):
        let_expire(ending, credentials.load(home).agent_id, seconds=(over - 1) * HOUR)
        client = client_of(home)
        client.me()
        assert client.key_life is not None
        assert client.key_life.is_half_over() is due, "also of an agent that was started a moment ago"
