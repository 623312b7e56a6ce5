"""The port of a site cache: it serves shards by their digests to whom the coordinator allows them, fetches each once, and is no proxy."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.agent.site import server
from fedcybgd.agent.site.metrics import COUNTED, METRICS
from fedcybgd.agent.site.server import CachePort
from fedcybgd.agent.site.shards import HELD_BACK, SiteShards
from fedcybgd.agent.site.upstream import Upstream
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.metrics import text
from fedcybgd.shared.contract.words import COORDINATOR, SITE_CACHE
from fedcybgd.shared.host.counters import Counters
from tests.support.hostile import FakeServer, serving
from tests.support.processes import wait_for
from tests.support.site import ASSIGNMENT, ME, Played, bodies, signed

DATA = bytes(range(256)) * 2000
OTHER, THIRD = DATA[::-1], DATA[1:] + b"?"
DIGEST = digest_of(DATA)
SIZE = len(DATA)


class Scene:
    """A played coordinator, and a cache of it with room for two shards."""

    def __init__(self, folder: Path, storage: list[str] | None) -> None:
        self.coordinator = Played(DATA, OTHER, THIRD)
        self.before = FakeServer(self.coordinator)
        self.cache = ShardCache(folder, 2 * SIZE + 100)
        self.counters = Counters(COUNTED)
        upstream = Upstream(self.before.url, storage)
        self.port = CachePort(("127.0.0.1", 0), upstream, SiteShards(self.cache, upstream, self.counters), self.counters)
        self.folder, self.signer = folder, Signer(new_private_key())

    def get(self, digest: str = DIGEST, signer: Signer | None = None, **headers: str) -> httpx.Response:
        path = f"/v1/assignments/{ASSIGNMENT}/shards/{digest}"
        return httpx.get(self.port.url + path, headers=signed(signer or self.signer, path) | headers, timeout=20)

    def files(self) -> list[str]:
        return sorted(file.name for file in self.folder.iterdir())

    def close(self) -> None:
        self.coordinator.gate.set()
        self.port.close()
        self.before.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "shards", [])
    yield scene
    scene.close()


def test_a_shard_is_fetched_once_and_each_reader_is_asked_for(scene: Scene) -> None:
    for _ in range(3):
        answer = scene.get()
        assert (answer.status_code, answer.content) == (200, DATA)
        assert (answer.headers[SITE_CACHE], answer.headers[COORDINATOR]) == ("asked", ME)
    assert len(bodies(scene.before.asked)) == 1
    assert len(scene.before.asked) == 3
    for line in (
        'requests_total{outcome="fetched"} 1',
        'requests_total{outcome="here"} 2',
        f'bytes_total{{direction="served"}} {3 * SIZE}',
    ):
        wait_for(lambda line=line: f"fedagent_cache_{line}" in text(METRICS, scene.counters.entries()))  # it counts when all has gone


def test_who_asks_meanwhile_reads_along_and_is_asked_for_too(scene: Scene) -> None:
    scene.coordinator.first, stranger = SIZE // 2, Signer(new_private_key())
    scene.coordinator.refused.add(stranger.key_id)
    scene.coordinator.gate.clear()
    with ThreadPoolExecutor(11) as pool:
        asked = [pool.submit(scene.get) for _ in range(10)]
        wait_for(lambda: len(scene.before.asked) >= 10)
        refused = pool.submit(scene.get, DIGEST, stranger).result()
        scene.coordinator.gate.set()
        assert {one.result().content for one in asked} == {DATA}
    assert (refused.status_code, refused.json()["code"]) == (409, "lease_lost")
    assert len(bodies(scene.before.asked)) == 1
    assert scene.files() == [DIGEST]


def test_who_is_refused_first_holds_nobody_up(scene: Scene) -> None:
    stranger = Signer(new_private_key())
    scene.coordinator.refused.add(stranger.key_id)
    scene.coordinator.says_no.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(scene.get, DIGEST, stranger)
        wait_for(lambda: scene.before.asked)
        others = [pool.submit(scene.get) for _ in range(2)]
        wait_for(lambda: scene.port._server._open.total() == 3)
        scene.coordinator.says_no.set()
        assert first.result().status_code == 409
        assert [one.result().content for one in others] == 2 * [DATA]


def test_what_has_come_is_passed_on_before_the_rest_is_there(scene: Scene) -> None:
    scene.coordinator.first = SIZE // 2
    scene.coordinator.gate.clear()
    path = f"/v1/assignments/{ASSIGNMENT}/shards/{DIGEST}"
    with httpx.stream("GET", scene.port.url + path, headers=signed(scene.signer, path)) as answer:
        pieces = answer.iter_raw()
        had = b""
        while len(had) < SIZE // 2:
            had += next(pieces)
        scene.coordinator.gate.set()
        assert had + b"".join(pieces) == DATA


def test_whom_the_coordinator_refuses_gets_nothing_though_it_is_here(scene: Scene) -> None:
    scene.get()
    stranger = Signer(new_private_key())
    scene.coordinator.refused.add(stranger.key_id)
    answer = scene.get(signer=stranger)
    assert (answer.status_code, answer.json()["code"]) == (409, "lease_lost")
    assert SITE_CACHE not in answer.headers


def test_while_the_coordinator_is_away_nobody_gets_anything(scene: Scene) -> None:
    assert scene.get().status_code == 200
    scene.before.close()
    assert scene.get().status_code == 502


def test_ranges_are_as_agents_ask_for_them(scene: Scene) -> None:
    for _ in range(2):
        answer = scene.get(Range="bytes=1000-")
        assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, DATA[1000:], f"bytes 1000-{SIZE - 1}/{SIZE}")
    assert scene.get(Range=f"bytes={SIZE}-").status_code == 416
    assert scene.get(Range="bytes=5-7,9-").content == DATA, "what is not understood is answered with all of it"


def test_wrong_bytes_are_never_served_whole_and_are_not_kept(scene: Scene) -> None:
    scene.coordinator.blobs[DIGEST] = OTHER
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
        scene.get()
    assert scene.files() == []
    scene.coordinator.blobs[DIGEST] = DATA
    assert scene.get().content == DATA


def test_the_last_bytes_are_held_back_until_the_digest_is_right(scene: Scene) -> None:
    scene.coordinator.blobs[DIGEST], scene.coordinator.first = OTHER, SIZE - 10
    scene.coordinator.gate.clear()
    path, had = f"/v1/assignments/{ASSIGNMENT}/shards/{DIGEST}", list[bytes]()

    def read() -> None:
        with httpx.stream("GET", scene.port.url + path, headers=signed(scene.signer, path)) as answer:
            for piece in answer.iter_raw():
                had.append(piece)
                if sum(map(len, had)) >= SIZE - HELD_BACK:
                    scene.coordinator.gate.set()

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    assert len(b"".join(had)) == SIZE - HELD_BACK


def test_a_shard_that_was_spoilt_on_the_disk_is_fetched_anew(scene: Scene) -> None:
    scene.get()
    (scene.folder / DIGEST).write_bytes(b"x" * SIZE)
    assert scene.get().content == DATA
    assert len(bodies(scene.before.asked)) == 2


def test_what_a_killed_cache_had_is_gone_on_with(scene: Scene) -> None:
    part = scene.folder / f"{DIGEST}.part"
    for have in (1, 5000, SIZE):
        (scene.folder / DIGEST).unlink(missing_ok=True)
        part.write_bytes(DATA[:have])
        assert scene.get().content == DATA
    assert [one.headers.get("range") for one in scene.before.asked] == [None, "bytes=4999-", f"bytes={SIZE - 1}-"]
    assert scene.files() == [DIGEST]


def test_a_part_that_was_spoilt_is_thrown_away(scene: Scene) -> None:
    (scene.folder / f"{DIGEST}.part").write_bytes(b"x" * 5000)
    with pytest.raises(httpx.RemoteProtocolError):
        scene.get()
    assert scene.get().content == DATA


def test_what_was_used_longest_ago_goes_and_the_bound_holds(scene: Scene) -> None:
    first, second, third = DIGEST, digest_of(OTHER), digest_of(THIRD)
    for digest in (first, second, first, third):
        assert scene.get(digest).status_code == 200
        assert sum(file.stat().st_size for file in scene.folder.iterdir()) <= scene.cache.limit
    assert scene.files() == sorted([first, third])


def test_the_bound_holds_with_what_is_on_its_way(scene: Scene) -> None:
    scene.get(digest_of(THIRD))
    scene.coordinator.first = 20  # of each has come so little that all three seem to have room
    scene.coordinator.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        flowing = [pool.submit(scene.get, DIGEST)]
        wait_for(lambda: (scene.folder / f"{DIGEST}.part").exists())
        flowing.append(pool.submit(scene.get, digest_of(OTHER)))
        wait_for(lambda: (scene.folder / f"{digest_of(OTHER)}.part").exists())
        scene.coordinator.gate.set()
        assert [one.result().content for one in flowing] == [DATA, OTHER]
    assert scene.files() == sorted([DIGEST, digest_of(OTHER)])


def test_what_is_being_read_is_not_dropped_and_what_has_no_room_beside_it_is_refused(scene: Scene) -> None:
    scene.coordinator.first = 1000
    scene.coordinator.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        flowing = [pool.submit(scene.get, digest) for digest in (DIGEST, digest_of(OTHER))]
        wait_for(lambda: len(scene.files()) == 2)
        assert scene.get(digest_of(THIRD)).status_code == 507
        scene.coordinator.gate.set()
        assert [one.result().content for one in flowing] == [DATA, OTHER]
    assert scene.get(digest_of(THIRD)).content == THIRD


BAD_PATHS = [
    "/", "/metrics", "/v1/health", f"/v1/assignments/{ASSIGNMENT}", f"/v1/assignments/{ASSIGNMENT}/shards/", "/v1/assignments/claim",
    f"/v1/assignments/{ASSIGNMENT}/shards/{DIGEST}/", f"/v1/assignments/{ASSIGNMENT}/shards/{DIGEST}?x=1", f"/v1/assignments/{ASSIGNMENT}/shards/{DIGEST.upper()}",
    f"/v1/assignments/{ASSIGNMENT}/shards/{DIGEST[:-1]}", f"/v1/assignments/{ASSIGNMENT}/shards/../../../etc/passwd", f"/v1/assignments/..%2f..%2f/shards/{DIGEST}",
    f"//{ASSIGNMENT}/shards/{DIGEST}", f"/v1/assignments/{ASSIGNMENT}/upload/{DIGEST}", f"http://169.254.169.254/v1/assignments/{ASSIGNMENT}/shards/{DIGEST}",
    f"/v1/runs/run_{16 * '0'}/files/config.json", f"/v1/assignments/{ASSIGNMENT}/shards/{DIGEST}%00", "*", "http://127.0.0.1/",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
def test_nothing_but_shards_is_asked_of_anybody(scene: Scene, path: str) -> None:
    status, _ = raw(scene, f"GET {path} HTTP/1.1", signed(scene.signer, path))
    assert status == 404
    assert scene.before.asked == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "CONNECT", "HEAD", "OPTIONS", "PATCH"])
def test_nothing_but_get_is_done(scene: Scene, method: str) -> None:
    path = f"/v1/assignments/{ASSIGNMENT}/shards/{DIGEST}"
    status, _ = raw(scene, f"{method} {path} HTTP/1.1", signed(scene.signer, path))
    assert status == 501
    assert scene.before.asked == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer fca_secret"}, 400), ({"Cookie": "a=b"}, 400), ({"Signature": ""}, 401), ({"Signature": "sig1=:AAAA:"}, 401),
        ({"Signature-Input": "sig1=()"}, 401), ({"FedCyBGD-Version": "1\tx"}, 401),
    ],
)  # fmt: skip
def test_no_secret_is_taken_and_who_does_not_sign_is_not_asked_for(scene: Scene, headers: dict[str, str], status: int) -> None:
    path = f"/v1/assignments/{ASSIGNMENT}/shards/{DIGEST}"
    said, _ = raw(scene, f"GET {path} HTTP/1.1", signed(scene.signer, path) | headers)
    assert said == status
    assert scene.before.asked == []


def test_only_the_signature_goes_to_the_coordinator(scene: Scene) -> None:
    scene.get(**{"X-Forwarded-For": "1.2.3.4", "FedCyBGD-Daemon": "word", "FedCyBGD-Challenge": "c" * 30, "Host": "evil.example"})
    [asked] = scene.before.asked
    assert set(asked.headers) <= {
        "host", "accept", "accept-encoding", "connection", "user-agent", "signature", "signature-input", "fedcybgd-version",
    }  # fmt: skip
    assert asked.headers["host"] != "evil.example"


def raw(scene: Scene, line: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """An answer to a request as it is written here."""
    with socket.create_connection(("127.0.0.1", int(scene.port.url.rpartition(":")[2])), timeout=10) as wire:
        wire.sendall("\r\n".join([line, "Host: cache", *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode("latin-1"))
        answer = b""
        while piece := wire.recv(1 << 16):
            answer += piece
    return int(answer.split()[1]), answer


def test_it_goes_where_the_coordinator_sends_as_far_as_its_owner_allows(tmp_path: Path) -> None:
    storage = Played(DATA)
    with serving(lambda asked: storage.bytes_of(asked, DATA, {})) as other:
        scene = Scene(tmp_path / "allowed", [other.url])
        try:
            scene.coordinator.sends_to = other.url
            assert [scene.get().content for _ in range(3)] == 3 * [DATA]
            assert len(other.asked) == 1
            assert not {"signature", "signature-input"} & set(other.asked[0].headers)
        finally:
            scene.close()
        asked = len(other.asked)
        scene = Scene(tmp_path / "any", None)  # what its owner has not named must be of the internet: this is not
        try:
            scene.coordinator.sends_to = other.url
            assert scene.get().status_code == 502
            assert scene.get().content == DATA, "the coordinator itself is asked from then on"
            assert len(other.asked) == asked
        finally:
            scene.close()


def test_what_answers_without_the_name_of_a_coordinator_allows_nothing(scene: Scene, tmp_path: Path) -> None:
    with serving(lambda asked: scene.coordinator.bytes_of(asked, DATA, {})) as page:
        upstream = Upstream(page.url, [])
        port = CachePort(
            ("127.0.0.1", 0), upstream, SiteShards(ShardCache(tmp_path / "x", 1 << 30), upstream, scene.counters), scene.counters
        )
        path = f"/v1/assignments/{ASSIGNMENT}/shards/{DIGEST}"
        assert httpx.get(port.url + path, headers=signed(scene.signer, path)).status_code == 502
        port.close()


def test_one_address_does_not_have_all_connections(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_EACH", 2)
    at = ("127.0.0.1", int(scene.port.url.rpartition(":")[2]))
    with socket.create_connection(at) as one, socket.create_connection(at):
        with socket.create_connection(at, timeout=5) as third:
            assert third.recv(1) == b"", "it is ended at once"
        one.close()
        wait_for(lambda: _answers(scene))


def _answers(scene: Scene) -> bool:
    try:
        return scene.get().status_code == 200
    except httpx.HTTPError:
        return False


def test_a_port_that_is_taken_is_said(scene: Scene) -> None:
    upstream = Upstream(scene.before.url, [])
    with pytest.raises(ConfigError, match="choose another --host or --port"):
        CachePort(
            ("127.0.0.1", int(scene.port.url.rpartition(":")[2])),
            upstream,
            SiteShards(scene.cache, upstream, scene.counters),
            scene.counters,
        )
