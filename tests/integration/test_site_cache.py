"""`fedagent serve-cache` before a real coordinator: ten agents of a site, one fetch, and a ledger that knows of all ten."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from fedcybgd.agent import credentials
from fedcybgd.agent.check import check
from fedcybgd.agent.cli import app
from fedcybgd.agent.client import Client
from fedcybgd.agent.credentials import Credentials
from fedcybgd.agent.settings import Home
from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.shared.contract.agents import ClaimRequest, EnrolRequest
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.files.paths import inside
from tests.support.hostile import Answer, Asked, serving
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.s3_server import free_port
from tests.support.site import ME, Played, SiteAgent, bodies, signed, site_cache
from tests.support.visits import fresh, run_file, together

AGENTS = 10
DATA = bytes(range(256)) * 60_000
DIGEST, SIZE = digest_of(DATA), len(DATA)


class Site:
    """Ten enrolled agents that sign, each with an assignment of one round."""

    def __init__(self, live: LiveCoordinator, model: str, folder: Path, url: str | None) -> None:
        self.live = live
        self.agents = [SiteAgent(live.url, url, folder / f"agent-{number}") for number in range(AGENTS)]
        self.names = [enrolled(live, agent.signer) for agent in self.agents]
        for agent in self.agents:
            agent.client.me()
        spec = run_file(model, [], method="whole", whole={"weights": "equal"}, compression={}, schedule={"cycles": 1})
        self.run = live.create_run(spec | {"agents": self.names}, start=True)["name"]
        self.assignments = [self._claimed(agent.client) for agent in self.agents]
        self.refs = {ref.digest: ref.size for ref in self.assignments[0].manifest.blocks}
        self.refs |= {ref.digest: ref.size for ref in self.assignments[0].manifest.files}

    def _claimed(self, client: Client) -> LeasedAssignment:
        assignment = client.claim(ClaimRequest(runs=[self.run]), 10)
        assert assignment is not None
        return assignment

    def fetch(self, number: int) -> int:
        """All that an agent needs; the bytes."""
        agent, assignment = self.agents[number], self.assignments[number]
        return sum(len(agent.fetch(digest, size, assignment.assignment_id)) for digest, size in self.refs.items())

    def sent(self) -> int:
        amount: int = self.live.operator.get(f"/runs/{self.run}")["bytes"]["down"]
        return amount

    def exposed(self) -> set[str]:
        return {name for name in self.names if self.live.operator.get("/exposure", agent=name)}


def enrolled(live: LiveCoordinator, signer: Signer) -> str:
    name = fresh("site")
    signer._ahead = 1.5  # what is signed in the second in which a coordinator began is refused once
    token = live.operator.post("/enrolment-tokens", {})["token"]
    Client(live.url).enrol(EnrolRequest(token=token, name=name, public_key=signer.public_key))
    return name


def test_ten_agents_cost_the_coordinator_one_fetch_and_all_are_in_the_ledger(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    with site_cache(live.url, tmp_path / "cache") as cache:
        site = Site(live, model, tmp_path, cache.url)
        once = sum(site.refs.values())
        assert together(AGENTS, site.fetch) == AGENTS * [once]
        wait_for(lambda: site.sent() == once)
        assert site.exposed() == set(site.names)
        assert [agent.site.bytes_fetched for agent in site.agents] == AGENTS * [once]
        assert sorted(cache.files()) == sorted(site.refs)
        time.sleep(0.2)  # what is counted after an answer
        assert site.sent() == once


def test_whoever_has_no_lease_gets_nothing_from_it(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    with site_cache(live.url, tmp_path / "cache") as cache:
        site = Site(live, model, tmp_path, cache.url)
        digest, size = max(site.refs.items(), key=lambda ref: ref[1])
        mine, assignment = site.agents[0], site.assignments[0]
        mine.fetch(digest, size, assignment.assignment_id)
        path = f"/v1/assignments/{assignment.assignment_id}/shards/{digest}"
        stranger, unknown = SiteAgent(live.url, cache.url, tmp_path / "stranger"), Signer(new_private_key())
        enrolled(live, stranger.signer)
        for headers, status in (
            ({}, 401), (signed(unknown, path), 401), (signed(stranger.signer, path), 409), (signed(mine.signer, path + "x"), 401),
            ({"Authorization": "Bearer fca_x", **signed(mine.signer, path)}, 400),
        ):  # fmt: skip
            answer = httpx.get(cache.url + path, headers=headers)
            assert answer.status_code == status
            assert len(answer.content) < 1000 < size
        good = signed(mine.signer, path)
        assert len(httpx.get(cache.url + path, headers=good).content) == size
        assert httpx.get(cache.url + path, headers=good).status_code == 401, "a signature counts once, here too"


def test_without_one_each_agent_costs_a_fetch(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    site = Site(live, model, tmp_path, None)
    together(AGENTS, site.fetch)
    wait_for(lambda: site.sent() == AGENTS * sum(site.refs.values()))


@pytest.fixture
def played() -> Iterator[Played]:
    played = Played(DATA)
    yield played
    played.gate.set()


def test_a_cache_that_is_killed_ends_no_transfer_and_goes_on_with_what_it_had(played: Played, tmp_path: Path) -> None:
    played.first = SIZE // 3
    played.gate.clear()
    with serving(played) as before, site_cache(before.url, tmp_path / "cache") as cache:
        agents = [SiteAgent(before.url, cache.url, tmp_path / f"agent-{number}") for number in range(3)]
        for agent in agents:
            agent.client.coordinator = ME

        def disturb(number: int) -> bytes:
            if number < len(agents):
                return agents[number].fetch(DIGEST, SIZE)
            wait_for(lambda: all(agent.site.bytes_fetched for agent in agents))
            cache.kill()
            played.gate.set()
            return DATA

        assert together(4, disturb) == 4 * [DATA]
        for agent in agents:
            [direct] = [
                one for one in bodies(before.asked) if agent.signer.key_id in one.headers["signature-input"] and "range" in one.headers
            ]
            assert int(direct.headers["range"].removeprefix("bytes=").removesuffix("-")) > 0, "it went on at its byte"
        [(part, had)] = cache.files().items()
        assert (part, had > 0) == (f"{DIGEST}.part", True)
        cache.start()
        again = SiteAgent(before.url, cache.url, tmp_path / "again")
        again.client.coordinator = ME
        assert again.fetch(DIGEST, SIZE) == DATA
        assert bodies(before.asked)[-1].headers["range"] == f"bytes={had - 1}-"
        assert cache.files() == {DIGEST: SIZE}


def test_ten_agents_cost_a_storage_one_fetch(played: Played, tmp_path: Path) -> None:
    def storage(asked: Asked) -> Answer:
        assert "signature" not in asked.headers
        return played.bytes_of(asked, DATA, {})

    with serving(storage) as other, serving(played) as before:
        played.sends_to = other.url
        with site_cache(before.url, tmp_path / "cache", "--storage", other.url) as cache:
            agents = [SiteAgent(before.url, cache.url, tmp_path / f"agent-{number}") for number in range(AGENTS)]
            for agent in agents:
                agent.client.coordinator = ME
            assert together(AGENTS, lambda number: agents[number].fetch(DIGEST, SIZE)) == AGENTS * [DATA]
            assert len(other.asked) == 1
            assert "?X-Amz-Signature=secret" in other.asked[0].path
            assert "secret" not in cache.log, "an address that opens a blob is nobody's to read"


def test_nothing_secret_is_written_down(played: Played, tmp_path: Path) -> None:
    with serving(played) as before, site_cache(before.url, tmp_path / "cache", "--verbose") as cache:
        agent = SiteAgent(before.url, cache.url, tmp_path / "agent")
        agent.client.coordinator = ME
        agent.fetch(DIGEST, SIZE)
        said = before.asked[0].headers
        for kept in [cache.log.encode(), *(file.read_bytes() for file in cache.folder.rglob("*") if file.is_file())]:
            assert said["signature"].encode() not in kept
            assert said["signature-input"].encode() not in kept
        assert {file.stat().st_mode & 0o077 for file in [cache.folder, *cache.folder.rglob("*")]} == {0}


def test_it_ends_when_it_is_asked_to_and_works_alone_in_its_directory(played: Played, tmp_path: Path) -> None:
    with serving(played) as before, site_cache(before.url, tmp_path / "cache") as cache:
        second = CliRunner().invoke(app, ["serve-cache", before.url, "--directory", str(tmp_path / "cache"), "--port", "0"])
        assert "works in" in str(second.exception)
        assert cache.stop() == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "--tls-certificate and --tls-key, or --plain-http"),
        (["--tls-key", "KEY"], "go together"),
        (["--tls-key", "KEY", "--tls-certificate", "KEY"], "no certificate"),
        (["--directory", "KEY/there"], "name another one"),
    ],
)
def test_what_is_wrong_with_its_options_is_a_line(tmp_path: Path, options: list[str], says: str) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    words = [word.replace("KEY", str(file)) for word in options]
    directory = [] if "--directory" in words else ["--directory", str(tmp_path / "cache")]
    result = CliRunner().invoke(app, ["serve-cache", "http://127.0.0.1:9", "--port", "0", *words, *directory])
    assert says in str(result.exception)
    plain = CliRunner().invoke(app, ["serve-cache", "http://coordinator.example", "--port", "0", "--directory", str(tmp_path / "cache")])
    assert "plain HTTP" in str(plain.exception)


def test_a_check_finds_it(live: LiveCoordinator, tmp_path: Path) -> None:
    home, private = Home(tmp_path / "home"), new_private_key()
    home.ready()
    name = enrolled(live, Signer(private))
    credentials.save(home, Credentials("agt_" + 16 * "0", name, None, None, private, None))
    (home.path / "rows.jsonl").write_text('{"text": "a", "label": 0}\n')
    time.sleep(1.5)  # a signature of the second in which the coordinator began
    with site_cache(live.url, tmp_path / "cache") as cache:
        settings = f'coordinator = "{live.url}"\n[data]\npath = "rows.jsonl"\nruns = ["x"]\n[site_cache]\nurl = "{cache.url}"\n'
        home.config.write_text(settings)
        found = next(one for one in check(home) if one.what == "site cache")
        assert (found.ok, "reaches the coordinator" in found.found) == (True, True)
    found = next(one for one in check(home) if one.what == "site cache")
    assert (found.ok, "refused" in found.found) == (False, True)


@contextmanager
def nginx(coordinator: str, folder: Path) -> Iterator[str]:
    """As docs/running-an-agent.md has it."""
    program, port = shutil.which("nginx"), free_port()
    assert program is not None
    text = (Path(__file__).parents[2] / "deploy" / "nginx-site-cache.conf").read_text()
    for was, now in (
        ("/var/cache/nginx/fedcybgd", str(folder / "shards")), ("listen 8441;", f"listen 127.0.0.1:{port};"), ("https://coordinator.example", coordinator),
        ("coordinator.example", "127.0.0.1"),
    ):  # fmt: skip
        assert was in text, was
        text = text.replace(was, now)
    places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root; " if Path("/proc/self").stat().st_uid == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\nhttp {{ access_log off; {places}\n{text}\n}}\n"
    )
    process = subprocess.Popen([program, "-c", str(inside(folder, "nginx.conf")), "-p", str(folder)])
    try:
        wait_for(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").status_code > 0
    except httpx.HTTPError:
        return False


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_nginx_will_do_and_the_ledger_knows_of_all(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    (tmp_path / "nginx").mkdir()
    with nginx(live.url, tmp_path / "nginx") as url:
        site = Site(live, model, tmp_path, url)
        once = sum(site.refs.values())
        assert site.agents[0].site.probe() is None
        assert together(AGENTS, site.fetch) == AGENTS * [once]
        wait_for(lambda: site.sent() >= once)
        assert site.exposed() == set(site.names)
        time.sleep(0.2)
        assert site.sent() == once
        assert [agent.site.bytes_fetched for agent in site.agents] == AGENTS * [once]
        assert httpx.get(f"{url}/v1/health").status_code == 404
