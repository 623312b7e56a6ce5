"""Bytes from another host: only from one that the owner allows, and it learns nothing of who asks."""

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import trustme

from fedcybgd.agent import elsewhere
from fedcybgd.agent.assignment_run import fetch_blob
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.client import Client
from fedcybgd.agent.elsewhere import OtherHostFailed, OtherHosts, is_public
from fedcybgd.agent.errors import NotTheCoordinator, Unreachable, VisitFailed
from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import BlobRef
from fedcybgd.shared.contract.words import COORDINATOR, ELSEWHERE
from tests.support.hostile import Answer, Asked, FakeServer, serving

DATA = bytes(range(256)) * 400
DIGEST = digest_of(DATA)
ME = "crd_" + 16 * "0"
ASSIGNMENT = "asg_" + 16 * "1"


def storage(asked: Asked) -> Answer:
    """As S3 answers with ranges."""
    start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    return Answer(206 if start else 200, DATA[start:])


def sends_to(url: str) -> Callable[[Asked], Answer]:
    def coordinator(asked: Asked) -> Answer:
        if asked.headers.get(ELSEWHERE.lower()) != "yes":
            return Answer(200, DATA, {COORDINATOR: ME})
        return Answer(307, b"", {"Location": f"{url}/blob?X-Amz-Signature=secret", COORDINATOR: ME})

    return coordinator


def fetch(client: Client, cache: ShardCache, digest: str = DIGEST, size: int = len(DATA)) -> bytes:
    return cache.get(digest, size, lambda offset: client.shard(ASSIGNMENT, digest, offset)).read_bytes()


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 1 << 30)


def places(server: FakeServer) -> list[str]:
    return [one.path.partition("?")[0] for one in server.asked]


@pytest.mark.parametrize("key", ["fca_secret", Signer(new_private_key())], ids=["secret", "signed"])
def test_it_is_fetched_there_and_nothing_of_the_key_goes_along(cache: ShardCache, key: str | Signer) -> None:
    with serving(storage) as other, serving(sends_to(other.url)) as server:
        client = Client(server.url, key, ME, storage=[other.url])
        assert fetch(client, cache) == DATA
        assert places(other) == ["/blob"]
        assert set(other.asked[0].headers) <= {"host", "accept", "accept-encoding", "connection", "user-agent"}
        assert other.asked[0].headers["accept-encoding"] == "identity"


def test_what_was_cut_goes_on_there_with_a_new_address(cache: ShardCache) -> None:
    def cut(asked: Asked) -> Answer:
        return storage(asked) if "range" in asked.headers else Answer(200, DATA[:1000], announced=len(DATA))

    with serving(cut) as other, serving(sends_to(other.url)) as server:
        client = Client(server.url, "key", ME, storage=[other.url])
        with pytest.raises(Unreachable, match="was cut"):
            fetch(client, cache)
        assert fetch(client, cache) == DATA
        assert [one.headers.get("range") for one in other.asked] == [None, "bytes=1000-"]
        assert len(server.asked) == 2


@pytest.mark.parametrize("status", [301, 307, 400, 403, 404, 500, 503])
def test_where_it_does_not_serve_the_coordinator_is_asked_itself(cache: ShardCache, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda _: Answer(status, b"no", {"Location": "http://169.254.169.254/"})) as other, serving(sends_to(other.url)) as server:
        client = Client(server.url, "key", ME, storage=[other.url])
        with pytest.raises(OtherHostFailed, match=str(status)):
            fetch(client, cache)
        assert fetch(client, cache) == DATA
        assert len(other.asked) == 1
        monkeypatch.setattr(time, "monotonic", lambda later=time.monotonic() + elsewhere.FAILED_S + 1: later)
        assert client.elsewhere.headings() == {ELSEWHERE: "yes"}, "after a while it may serve again"


def test_where_nobody_answers_the_coordinator_is_asked_itself(cache: ShardCache) -> None:
    with serving(storage) as other:
        gone = other.url
    with serving(sends_to(gone)) as server:
        client = Client(server.url, "key", ME, storage=[gone])
        with pytest.raises(OtherHostFailed, match="does not serve"):
            fetch(client, cache)
        assert fetch(client, cache) == DATA


def test_more_bytes_than_were_announced_are_not_read(cache: ShardCache) -> None:
    with serving(lambda _: Answer(200, DATA + DATA)) as other, serving(sends_to(other.url)) as server:
        client = Client(server.url, "key", ME, storage=[other.url])
        with pytest.raises(Exception, match="more bytes"):
            fetch(client, cache)
        assert client.elsewhere.blame(), "it is had from the coordinator itself"
        assert fetch(client, cache) == DATA


def test_who_gave_wrong_bytes_is_not_asked_again(cache: ShardCache) -> None:
    with serving(lambda _: Answer(200, bytes(len(DATA)))) as other, serving(sends_to(other.url)) as server:
        client = Client(server.url, "key", ME, storage=[other.url])
        with pytest.raises(Exception, match="damaged"):
            fetch(client, cache)
        assert client.elsewhere.blame()
        assert fetch(client, cache) == DATA
        assert not client.elsewhere.blame(), "those were the coordinator's"


def test_a_visit_is_not_lost_by_wrong_bytes_from_elsewhere(cache: ShardCache) -> None:
    with serving(lambda _: Answer(200, bytes(len(DATA)))) as other, serving(sends_to(other.url)) as server:
        client = Client(server.url, "key", ME, storage=[other.url])
        tools, assignment = SimpleNamespace(client=client, cache=cache, site=None), SimpleNamespace(assignment_id=ASSIGNMENT)
        assert fetch_blob(tools, assignment, BlobRef(digest=DIGEST, size=len(DATA))).read_bytes() == DATA  # type: ignore[arg-type]
        assert len(other.asked) == 1
    with serving(lambda _: Answer(200, bytes(len(DATA)), {COORDINATOR: ME})) as server:
        tools.client = Client(server.url, "key", ME)
        with pytest.raises(VisitFailed, match="damaged"):
            fetch_blob(tools, assignment, BlobRef(digest="0" * 64, size=len(DATA)))  # type: ignore[arg-type]


@pytest.mark.parametrize("headers", [{}, {COORDINATOR: "?"}], ids=["nobody", "nonsense"])
def test_only_the_coordinator_sends_elsewhere(cache: ShardCache, headers: dict[str, str]) -> None:
    with serving(storage) as other, serving(lambda _: Answer(307, b"", {"Location": other.url} | headers)) as server:
        with pytest.raises(NotTheCoordinator):
            fetch(Client(server.url, "key", ME, storage=[other.url]), cache)
        assert other.asked == []


def test_who_has_not_asked_to_be_sent_elsewhere_is_not(cache: ShardCache) -> None:
    with serving(storage) as other, serving(lambda _: Answer(307, b"", {"Location": other.url, COORDINATOR: ME})) as server:
        with pytest.raises(NotTheCoordinator):
            fetch(Client(server.url, "key", ME, storage=[]), cache)
        assert other.asked == []


def test_an_owner_may_say_that_there_is_no_elsewhere(cache: ShardCache) -> None:
    with serving(storage) as other, serving(sends_to(other.url)) as server:
        assert fetch(Client(server.url, "key", ME, storage=[]), cache) == DATA
        assert other.asked == []


PRIVATE = ["10.1.2.3", "192.168.0.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.1.1", "::1", "fe80::1", "fd00::1",
           "::ffff:10.0.0.1", "2002:a00:1::", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "::ffff:0:10.0.0.1", "::10.0.0.1", "fec0::1", "2001:0:a00:1::",
           "no address"]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_no_host_of_its_own_network_is_asked_by_default(address: str) -> None:
    assert not is_public(address)
    resolved: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        resolved.append(host)
        return ["93.184.216.34", address]

    with pytest.raises(OtherHostFailed, match="not of the internet"):
        OtherHosts(resolve=resolve).fetch("https://bucket.example/blob", 0).__enter__()
    assert resolved == ["bucket.example"]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://bucket.example/blob", "plain HTTP"),
        ("https://key@bucket.example/blob", "no plain address"),
        ("file:///etc/passwd", "no plain address"),
        ("ftp://bucket.example/blob", "no plain address"),
        ("/blob", "no plain address"),
        ("https://", "no plain address"),
        ("https://[::1/blob", "is not asked"),
        ("https://10.0.0.1/blob", "not of the internet"),
        ("https://2130706433/blob", "not of the internet"),
        ("https://localhost/blob", "not of the internet"),
    ],
)
def test_an_address_of_another_kind_is_not_asked(url: str, why: str) -> None:
    other = OtherHosts()
    with pytest.raises(OtherHostFailed, match=why):
        other.fetch(url, 0).__enter__()
    assert other.headings() == {}, "the coordinator is asked itself from now on"


def test_a_name_that_leads_nowhere_is_not_held_against_the_host_for_long() -> None:
    def nowhere(_host: str, _port: int) -> list[str]:
        raise OSError("Name or service not known")

    with pytest.raises(OtherHostFailed, match="leads nowhere"):
        OtherHosts(resolve=nowhere).fetch("https://bucket.example/blob", 0).__enter__()


@pytest.mark.parametrize(
    ("allowed", "url", "asked"),
    [
        ("https://bucket.example", "https://bucket.example/b", True),
        ("bucket.example", "https://BUCKET.example:443/b", True),
        ("bucket.example", "http://bucket.example/b", False),
        ("bucket.example", "https://bucket.example:8443/b", False),
        ("bucket.example", "https://bucket.example.evil.example/b", False),
        ("*.example", "https://bucket.example/b", True),
        ("*.example", "https://example.evil/b", False),
        ("http://10.0.0.5:9000", "http://10.0.0.5:9000/b", True),
        ("http://10.0.0.5:9000", "http://10.0.0.5:22/b", False),
        ("https://bucket.example", "https://key@bucket.example/b", False),
    ],
)
def test_only_hosts_that_the_owner_names_are_asked(allowed: str, url: str, asked: bool) -> None:
    other = OtherHosts([allowed])
    if asked:
        assert other._way(url)[0] == httpx.URL(url)
    else:
        with pytest.raises(OtherHostFailed):
            other._way(url)


def test_what_is_reached_through_a_proxy_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://10.0.0.1:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(OtherHostFailed, match="proxy"):
        OtherHosts(resolve=lambda *_: ["93.184.216.34"])._way("https://bucket.example/b")
    OtherHosts(["bucket.example"])._way("https://bucket.example/b")


def test_the_address_that_was_checked_is_the_one_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name for the certificate and the heading Host; whoever answers for the name has no second say."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("bucket.example").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setattr(elsewhere, "is_public", lambda address: address == "127.0.0.1")
    with serving(storage, context) as server:
        port = int(server.url.rpartition(":")[2])
        other = OtherHosts(resolve=lambda *_: ["127.0.0.1"])
        with other.fetch(f"https://bucket.example:{port}/blob?q=1", 0) as answer:
            assert answer.read() == DATA
        assert (server.asked[0].path, server.asked[0].headers["host"]) == ("/blob?q=1", f"bucket.example:{port}")
        with pytest.raises(OtherHostFailed, match="CERTIFICATE_VERIFY_FAILED"):
            other.fetch(f"https://another.example:{port}/blob", 0).__enter__()
