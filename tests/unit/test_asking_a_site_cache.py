"""The agent's side of a site cache: whatever it does, the agent has its shard, and says what was wrong."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent import reaching
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import AgentError, ConfigError, CoordinatorSaid
from fedcybgd.agent.settings import Home
from fedcybgd.agent.showing import Showing
from fedcybgd.agent.site import asking
from fedcybgd.agent.site.asking import SiteCache
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.words import COORDINATOR, SITE_CACHE
from tests.support.hostile import Answer, Asked, FakeServer, serving
from tests.support.site import ME, Played, SiteAgent, bodies
from tests.unit.test_residuals import assignment

DATA = bytes(range(256)) * 20_000
DIGEST = digest_of(DATA)
SIZE = len(DATA)
ASKED = {SITE_CACHE: "asked", COORDINATOR: ME}


@pytest.fixture
def coordinator() -> Iterator[FakeServer]:
    with serving(Played(DATA)) as server:
        yield server


def good(asked: Asked) -> Answer:
    return Played().bytes_of(asked, DATA, ASKED)


def agent_of(coordinator: FakeServer, site: str | None, folder: Path) -> SiteAgent:
    agent = SiteAgent(coordinator.url, site, folder)
    agent.client.coordinator = ME
    return agent


def test_bytes_come_from_it_and_the_coordinator_sends_none(coordinator: FakeServer, tmp_path: Path) -> None:
    with serving(good) as site:
        agent = agent_of(coordinator, site.url, tmp_path)
        assert agent.fetch(DIGEST, SIZE) == DATA
        assert coordinator.asked == []
        assert {"signature", "signature-input"} <= set(site.asked[0].headers)
        assert "authorization" not in site.asked[0].headers
        assert (agent.site.bytes_fetched, agent.cache.fetched_in_all) == (SIZE, SIZE)


def test_it_may_have_a_path_of_its_own(coordinator: FakeServer, tmp_path: Path) -> None:
    with serving(good) as site:
        agent_of(coordinator, f"{site.url}/fedcybgd/", tmp_path).fetch(DIGEST, SIZE)
        assert site.asked[0].path.startswith("/fedcybgd/v1/assignments/")


def whole(body: bytes, **more: Any) -> Callable[[Asked], Answer]:
    return lambda _: Answer(200, body, dict(ASKED), **more)


LIES: dict[str, Callable[[Asked], Answer]] = {
    "other bytes": whole(DATA[::-1]),
    "less": whole(DATA[:1000]),
    "more": whole(DATA + b"x"),
    "nothing": whole(b""),
    "without a length": lambda _: Answer(200, DATA, dict(ASKED), stream=iter(())),
    "packed": lambda _: Answer(200, DATA, ASKED | {"Content-Encoding": "gzip"}),
    "another coordinator": lambda _: Answer(200, DATA[::-1], {COORDINATOR: "crd_" + 16 * "9"}),
    "elsewhere": lambda _: Answer(307, b"", {"Location": "http://169.254.169.254/", COORDINATOR: ME}),
    "a page": lambda _: Answer.page(200),
    "you are revoked": lambda _: Answer.json({"code": "agent_revoked", "message": "no", "detail": {}}, 401, **{COORDINATOR: ME}),
    "no such work": lambda _: Answer.json({"code": "lease_lost", "message": "no", "detail": {}}, 409, **{COORDINATOR: ME}),
    "no range": lambda _: Answer(416, b"", dict(ASKED)),
    "you have it": lambda _: Answer(304, b"", dict(ASKED)),
    "full": lambda _: Answer(507, b"full"),
    "broken": lambda _: Answer(500, b"?"),
    "long names": lambda _: Answer(200, DATA[::-1], {COORDINATOR: "x" * 9000}),
}


@pytest.mark.parametrize("lie", LIES)
def test_whatever_it_says_the_agent_has_its_shard(
    coordinator: FakeServer, tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ONCE_S", 60.0)
    with serving(LIES[lie]) as site:
        agent = agent_of(coordinator, site.url, tmp_path)
        began = time.monotonic()
        assert agent.fetch(DIGEST, SIZE) == DATA
        assert time.monotonic() - began < 5
        assert len(bodies(coordinator.asked)) == 1
        asked = len(site.asked)
        assert asked == 1
        assert not agent.site.is_asked, "it is left alone for a while"
        agent.cache.drop([DIGEST])
        assert agent.fetch(DIGEST, SIZE) == DATA
        assert len(site.asked) == asked


def test_where_nobody_answers_the_coordinator_does(coordinator: FakeServer, tmp_path: Path) -> None:
    with serving(good) as site:
        gone = site.url
    agent = agent_of(coordinator, gone, tmp_path)
    assert agent.fetch(DIGEST, SIZE) == DATA
    assert agent.site.trouble is not None
    assert "refused" in agent.site.trouble


def test_what_was_cut_goes_on_at_it_and_is_not_asked_for_again(coordinator: FakeServer, tmp_path: Path) -> None:
    """As one that was killed while it sent: it is back a moment later, or the coordinator sends what is lacking."""
    half = SIZE // 2

    def cut(asked: Asked) -> Answer:
        return good(asked) if "range" in asked.headers else Answer(200, DATA[:half], dict(ASKED), announced=SIZE)

    with serving(cut) as site:
        agent = agent_of(coordinator, site.url, tmp_path / "back")
        assert agent.fetch(DIGEST, SIZE) == DATA
        assert [one.headers.get("range") for one in site.asked] == [None, f"bytes={half}-"]
        assert coordinator.asked == []
    with serving(lambda asked: Answer(500) if "range" in asked.headers else cut(asked)) as site:
        agent = agent_of(coordinator, site.url, tmp_path / "gone")
        assert agent.fetch(DIGEST, SIZE) == DATA
        assert [one.headers.get("range") for one in coordinator.asked] == [f"bytes={half}-"]


def test_one_that_cuts_for_ever_is_given_up(coordinator: FakeServer, tmp_path: Path) -> None:
    with serving(whole(DATA[: SIZE // 2], announced=SIZE)) as site:  # from the beginning each time, so it would never end
        assert agent_of(coordinator, site.url, tmp_path).fetch(DIGEST, SIZE) == DATA
        assert len(site.asked) <= asking.MOST_CUTS + 1


def test_one_that_drips_is_given_up(coordinator: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LOOK_S", 0.3)

    def drips() -> Iterator[bytes]:
        for at in range(SIZE):
            time.sleep(0.05)
            yield DATA[at : at + 1]

    with serving(lambda _: Answer(200, b"", ASKED | {"Content-Length": str(SIZE)}, stream=drips())) as site:
        agent = agent_of(coordinator, site.url, tmp_path)
        began = time.monotonic()
        assert agent.fetch(DIGEST, SIZE) == DATA
        assert time.monotonic() - began < 5
        assert "bytes a second" in (agent.site.trouble or "")


def test_what_the_coordinator_refuses_is_heard_of_the_coordinator(tmp_path: Path) -> None:
    played = Played()
    with serving(played) as coordinator, serving(played) as site:
        agent = agent_of(coordinator, site.url, tmp_path)
        with pytest.raises(CoordinatorSaid, match="no"):
            agent.fetch(DIGEST, SIZE)
        assert len(site.asked) == len(coordinator.asked) == 1
        assert agent.site.trouble is None, "it did nothing wrong"


def test_any_http_cache_will_do_and_the_coordinator_hears_who_has_what(coordinator: FakeServer, tmp_path: Path) -> None:
    with serving(lambda asked: Played().bytes_of(asked, DATA, {COORDINATOR: ME})) as site:  # it does not say that it has asked
        assert agent_of(coordinator, site.url, tmp_path).fetch(DIGEST, SIZE) == DATA
        [told] = coordinator.asked
        assert told.headers["if-none-match"] == f'"{DIGEST}"'


def test_what_the_coordinator_does_not_allow_is_not_taken_from_any_cache(tmp_path: Path) -> None:
    with serving(Played()) as coordinator, serving(lambda _: Answer(200, DATA, {COORDINATOR: ME})) as site:
        agent = agent_of(coordinator, site.url, tmp_path)
        with pytest.raises(CoordinatorSaid):
            agent.fetch(DIGEST, SIZE)
        assert agent.site.bytes_fetched == 0


def test_who_shows_a_secret_shows_it_to_the_coordinator_alone(coordinator: FakeServer, tmp_path: Path) -> None:
    with serving(good) as site:
        agent = agent_of(coordinator, site.url, tmp_path)
        agent.client.use("fca_secret")
        assert agent.fetch(DIGEST, SIZE) == DATA
        assert site.asked == []
        assert "rotate-key" in (agent.site.probe() or "")
        assert site.asked == []


def test_it_is_asked_again_after_a_while_and_less_often_the_longer_it_is_away(
    coordinator: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with serving(lambda _: Answer(500)) as site:
        agent = agent_of(coordinator, site.url, tmp_path)
        waits = []
        for _ in range(8):
            agent.cache.drop([DIGEST])
            agent.fetch(DIGEST, SIZE)
            waits.append(agent.site._rests_until - now[0])
            now[0] = agent.site._rests_until
        assert waits == [60, 120, 240, 480, 900, 900, 900, 900]
        assert len(site.asked) == 8


@pytest.mark.parametrize(("lie", "seconds"), [("other bytes", 3600), ("broken", 60), ("no such work", 1)])
def test_the_worse_it_was_the_longer_it_is_left_alone(
    coordinator: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str, seconds: float
) -> None:
    """Wrong bytes cost a whole transfer; a refusal may be true, and is asked of the coordinator at once."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    with serving(LIES[lie]) as site:
        agent = agent_of(coordinator, site.url, tmp_path)
        assert agent.fetch(DIGEST, SIZE) == DATA
        assert agent.site._rests_until - 1000 == seconds
        assert (agent.site.trouble is None) is (lie == "no such work")


def test_a_shard_that_it_served_well_makes_good_what_was_before(
    coordinator: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    answers = [Answer(500), Answer(500), None, Answer(500)]
    with serving(lambda asked: answers.pop(0) or good(asked)) as site:
        agent = agent_of(coordinator, site.url, tmp_path)
        waits = []
        for _ in range(4):
            agent.cache.drop([DIGEST])
            agent.fetch(DIGEST, SIZE)
            waits.append(max(0, agent.site._rests_until - now[0]))
            now[0] += waits[-1]
        assert waits == [60, 120, 0, 60]
        assert agent.site.trouble is not None


def test_a_wrong_time_is_believed_of_the_coordinator_alone(coordinator: FakeServer, tmp_path: Path) -> None:
    with serving(lambda _: Answer(401, b"", {"FedCyBGD-Time": "99", COORDINATOR: ME})) as site:
        agent = agent_of(coordinator, site.url, tmp_path)
        assert agent.fetch(DIGEST, SIZE) == DATA
        assert agent.signer._ahead == 0


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer.json({"code": "not_found", "message": "", "detail": {}}, 404, **{COORDINATOR: ME}), None),
        (Answer.page(404), "as no coordinator does"),
        (Answer(404, b"", {COORDINATOR: "crd_" + 16 * "9"}), "another coordinator, crd_9999"),
        (Answer(401, b"", {COORDINATOR: ME}), "answers 401"),
    ],
)
def test_a_check_says_what_is_wrong_with_it(coordinator: FakeServer, tmp_path: Path, answer: Answer, says: str | None) -> None:
    with serving(lambda _: answer) as site:
        found = agent_of(coordinator, site.url, tmp_path).site.probe()
    assert found is None if says is None else says in (found or "")
    assert "refused" in (agent_of(coordinator, site.url, tmp_path).site.probe() or "")


def test_what_it_sent_is_counted_by_itself(coordinator: FakeServer, tmp_path: Path) -> None:
    with serving(good) as site:
        agent = agent_of(coordinator, site.url, tmp_path / "cache")
        home = Home(tmp_path / "home")
        home.ready()
        shows = Showing(home, agent.client, lambda: None, list, None, agent.site)
        shows.begins(0)
        agent.fetch(DIGEST, SIZE)
        shows.ends(assignment(1), SIZE + 10, True)
    lines = shows.metrics().splitlines()
    for line in (
        f"fedagent_site_cache_bytes_total {SIZE}",
        f'fedagent_bytes_total{{direction="down"}} {SIZE + 10}',
        "fedagent_site_cache_asked 1",
    ):
        assert line in lines
    shows.state("waiting for work")
    assert f'"bytes": {SIZE}' in home.status.read_text()
    assert f'"bytes_of_site": {SIZE}' in home.sent.read_text()


@pytest.mark.parametrize(
    ("section", "policy", "says"),
    [
        ('url = "https://cache.example:8441"', "", None),
        ('url = "http://127.0.0.1:8441"', "", None),
        ('url = "http://cache.example:8441"', "", "plain HTTP"),
        ('url = "http://cache.example:8441"\nplain_http = true', "", None),
        ('url = "http://cache.example:8441"\nplain_http = true', "[coordinator]\nplain_http = false", "policy.toml allows no http"),
        ('url = "cache.example"', "", "site_cache.url"),
        ('url = "http://ann:pa55@cache.example"', "", "site_cache.url"),
    ],
)
def test_its_address_is_held_against_settings_and_policy(tmp_path: Path, section: str, policy: str, says: str | None) -> None:
    home = Home(tmp_path)
    home.config.write_text(f'coordinator = "https://c.example"\n[data]\npath = "x"\n[site_cache]\n{section}\n')
    home.policy.write_text(policy)
    if says is None:
        assert reaching.load(home)[0].site_cache.url
        return
    with pytest.raises(ConfigError, match=says):
        reaching.load(home)


def test_without_one_all_is_as_before(coordinator: FakeServer, tmp_path: Path) -> None:
    agent = agent_of(coordinator, None, tmp_path)
    assert agent.fetch(DIGEST, SIZE) == DATA
    assert agent.site.probe() is None
    assert not agent.site.heard(AgentError("x"))
    agent.site.use("http://127.0.0.1:9")
    assert isinstance(SiteCache(Client(coordinator.url), None), SiteCache)
    assert agent.site.is_asked
