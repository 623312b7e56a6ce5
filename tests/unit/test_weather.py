"""Only the coordinator's own answer says something; whatever else answers is weather, on every call."""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent import connection
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.client import MOST_JSON, Client
from fedcybgd.agent.errors import (
    AnotherCoordinator,
    ConfigError,
    CoordinatorSaid,
    KeyRefused,
    LoginPage,
    NotTheCoordinator,
    Unreachable,
    VisitFailed,
)
from fedcybgd.agent.retry import is_retryable, patiently
from fedcybgd.shared.contract.agents import ClaimRequest, EnrolRequest
from fedcybgd.shared.contract.assignments import DeltaSubmission, RenewRequest, ReturnRequest
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.words import COORDINATOR
from tests.support.hostile import Answer, Asked, serving
from tests.unit.test_residuals import METRICS, asg

MINE, OTHER = "crd_" + 16 * "a", "crd_" + 16 * "b"
DIGEST = "a" * 64


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between two calls are as short as can be; how they grow is `test_retry`'s."""
    monkeypatch.setattr("fedcybgd.agent.retry._wait", lambda _error, _failures: 0.0)


def shard(client: Client) -> bytes:
    with client.shard(asg(1), DIGEST, 0) as answer:
        return b"".join(answer.iter_raw())


def upload(client: Client, folder: Path) -> Any:
    (folder / "delta").write_bytes(b"x" * 100)
    return client.upload(asg(1), DIGEST, folder / "delta", 0, 100)


CALLS: dict[str, Callable[[Client, Path], Any]] = {
    "claim": lambda c, _: c.claim(ClaimRequest(), 0),
    "renew": lambda c, _: c.renew(asg(1), RenewRequest(attempt=1)),
    "shard": lambda c, _: shard(c),
    "offset": lambda c, _: c.upload_offset(asg(1), DIGEST),
    "upload": upload,
    "submit": lambda c, _: c.submit(asg(1), DeltaSubmission(attempt=1, digest=DIGEST, metrics=METRICS)),
    "give back": lambda c, _: c.give_back(asg(1), ReturnRequest(attempt=1, reason="stopping")),
    "state": lambda c, _: c.state(asg(1)),
    "me": lambda c, _: c.me(),
    "rotate": lambda c, _: c.rotate_key(),
    "enrol": lambda c, _: c.enrol(EnrolRequest(token="fct_12345678", name="a")),
}
every_call = pytest.mark.parametrize("call", CALLS)
STATUSES = [301, 302, 307, 308, 400, 401, 403, 404, 405, 407, 410, 418, 421, 429, 451, 500, 502, 503, 504, 511, 520, 599]


@every_call
def test_a_page_with_any_status_is_weather(call: str, tmp_path: Path) -> None:
    asked = iter(STATUSES)
    with serving(lambda _: Answer.page(next(asked), Location="http://login.example/?token=secret")) as server:
        client = Client(server.url, "fca_x", MINE)
        for status in STATUSES:
            with pytest.raises(NotTheCoordinator, match=f"answered {status}: is it a coordinator") as said:
                CALLS[call](client, tmp_path)
            assert is_retryable(said.value)
            assert said.value.trouble.status == status
            assert "secret" not in said.value.message
        assert len(server.asked) == len(STATUSES), "no redirect is followed, with a key or without"


LOGIN = [
    Answer.page(200), Answer.page(511), Answer(302, headers={"Location": "http://login.example/hotel?token=secret"}),
    Answer(307, headers={"Location": "//portal.example"}),
]  # fmt: skip
NO_LOGIN = [
    Answer.json({"a": 1}), Answer.page(502), Answer.page(404), Answer(301, headers={"Location": "https://127.0.0.1/"}),
    Answer(302, headers={"Location": "/elsewhere"}), Answer(302), Answer(302, headers={"Location": "http://[x"}),
]  # fmt: skip


@pytest.mark.parametrize("login", [True, False])
@every_call
def test_a_page_to_log_in_is_told_as_one(call: str, login: bool, tmp_path: Path) -> None:
    for answer in LOGIN if login else NO_LOGIN[call == "shard" :]:
        with serving(lambda _, answer=answer: answer) as server, pytest.raises(NotTheCoordinator) as said:
            CALLS[call](Client(server.url, "fca_x", MINE), tmp_path)
        assert said.value.code == ("login_page" if login else "not_a_coordinator"), answer
        assert ("log in with a browser on this machine" in said.value.message) is login
        assert ("if the port is wrong" in said.value.message) is (login and answer.status == 200)
        assert said.value.trouble.code == "not_a_coordinator", "what every coordinator knows"
        assert "secret" not in said.value.message


ODD = {
    "html": Answer.page(200),
    "half": Answer(200, b'{"assignment_id": "as', {"Content-Type": "application/json"}),
    "list": Answer.json([]),
    "other json": Answer.json({"status": "ok"}),
    "number": Answer.json(7),
    "deep": Answer(200, b"[" * 100_000, {"Content-Type": "application/json"}),
    "nothing": Answer(200),
    "no text": Answer(200, b"\xff\xfe\x00"),
    "cut": Answer(200, b'{"a"', {"Content-Type": "application/json"}, announced=1000),
    "unknown coding": Answer(200, b"zzzz", {"Content-Encoding": "br"}),
    "not gzip": Answer(200, b"{}", {"Content-Encoding": "gzip"}),
    "bomb": Answer(200, gzip.compress(b" " * (MOST_JSON + 10)), {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
    "long": Answer(200, b" " * (MOST_JSON + 10), {"Content-Type": "application/json"}),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("call", [c for c in CALLS if c != "shard"])
def test_a_good_status_with_anything_else_is_weather(call: str, odd: str, tmp_path: Path) -> None:
    with serving(lambda _: ODD[odd]) as server, pytest.raises(Unreachable) as said:
        CALLS[call](Client(server.url, "fca_x", MINE), tmp_path)
    assert is_retryable(said.value)


JSON_OF_OTHERS: list[tuple[int, Any]] = [
    (401, {"message": "Unauthorized"}),
    (401, {"code": "unauthorized", "message": "no token"}),
    (403, {"code": 403, "message": "Forbidden", "detail": {}}),
    (404, {"code": "NotFound", "message": "no route", "detail": {}}),
    (404, {"detail": "Not Found"}),
    (503, {"code": "unavailable", "message": "x", "detail": "text"}),
    (500, {"code": "a", "message": "b", "detail": {}, "trace": "c"}),
    (401, {"code": "unauthorized", "message": "an API gateway", "detail": {}}),
    (403, {"code": "agent_revoked", "message": "another one", "detail": {}}),
]


@pytest.mark.parametrize(("status", "body"), JSON_OF_OTHERS)
def test_the_json_of_others_is_weather(status: int, body: Any, tmp_path: Path) -> None:
    with serving(lambda _: Answer.json(body, status)) as server:
        for call in CALLS.values():
            with pytest.raises(NotTheCoordinator):
                call(Client(server.url, "fca_x", MINE), tmp_path)


def ours(status: int, code: str, who: str = MINE, detail: dict[str, Any] | None = None) -> Answer:
    return Answer.json({"code": code, "message": "says so", "detail": detail or {}}, status, **{COORDINATOR: who})


@every_call
def test_its_own_coordinator_is_believed(call: str, tmp_path: Path) -> None:
    answers = iter(
        [
            ours(401, "unauthorized"),
            ours(403, "agent_revoked"),
            ours(409, "stale_attempt", detail={"status": 1, "code": 2, "message": 3}),
            ours(404, "not_found"),
        ]
    )
    with serving(lambda _: next(answers)) as server:
        client = Client(server.url, "fca_x", MINE)
        for _ in range(2):
            with pytest.raises(KeyRefused):
                CALLS[call](client, tmp_path)
        for code in ("stale_attempt", "not_found"):
            with pytest.raises(CoordinatorSaid) as said:
                CALLS[call](client, tmp_path)
            assert said.value.code == code
            assert not isinstance(said.value, KeyRefused)
            assert not is_retryable(said.value)


@every_call
def test_another_coordinator_is_waited_out_whatever_it_says(call: str, tmp_path: Path) -> None:
    answers = iter(
        [ours(401, "unauthorized", OTHER), ours(409, "lease_lost", OTHER), ours(200, "x", OTHER), Answer(204, b"", {COORDINATOR: OTHER})]
    )
    with serving(lambda _: next(answers)) as server:
        client = Client(server.url, "fca_x", MINE)
        for _ in range(4):
            with pytest.raises(AnotherCoordinator, match="another home or database") as said:
                CALLS[call](client, tmp_path)
            assert is_retryable(said.value)
        assert client.coordinator == MINE


def test_the_identity_is_learned_from_the_first_good_answer_only() -> None:
    answers = iter([ours(401, "unauthorized", OTHER), Answer(204, b"", {COORDINATOR: "not an id"}), Answer(204, b"", {COORDINATOR: MINE})])
    with serving(lambda _: next(answers)) as server:
        client = Client(server.url, "fca_x")
        with pytest.raises(KeyRefused):
            client.claim(ClaimRequest(), 0)
        for known in (None, MINE):
            assert client.claim(ClaimRequest(), 0) is None
            assert client.coordinator == known


def test_weather_passes(at_once: None) -> None:
    answers = iter(
        [Answer.page(404), Answer.page(302), Answer.page(200), ours(401, "unauthorized", OTHER), Answer(204, b"", {COORDINATOR: MINE})]
    )
    told: list[Exception] = []
    with serving(lambda _: next(answers)) as server:
        client = Client(server.url, "fca_x", MINE)
        assert patiently(lambda: client.claim(ClaimRequest(), 0), waited=told.append) is None
    assert [type(error) for error in told] == [NotTheCoordinator, NotTheCoordinator, LoginPage, AnotherCoordinator]


# ---- transfers ---------------------------------------------------------------------------------------------------------

BLOB = bytes(range(256)) * 4000


def fetched(server_url: str, folder: Path, size: int = len(BLOB), digest: str = digest_of(BLOB)) -> bytes:
    client = Client(server_url, "fca_x")
    return ShardCache(folder, 10**9).get(digest, size, lambda offset: client.shard(asg(1), digest, offset)).read_bytes()


def test_a_shard_is_asked_for_as_it_is(tmp_path: Path) -> None:
    with serving(lambda _: Answer(200, BLOB)) as server:
        assert fetched(server.url, tmp_path) == BLOB
        assert server.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "GZIP"])
def test_a_shard_comes_through_a_proxy_that_compresses_all_the_same(tmp_path: Path, coding: str) -> None:
    data = zlib.compress(BLOB) if coding == "deflate" else gzip.compress(BLOB)
    with serving(lambda _: Answer(200, data, {"Content-Encoding": coding})) as server:
        assert fetched(server.url, tmp_path) == BLOB


ODD_CODINGS: dict[str, tuple[str, bytes]] = {
    "said and not done": ("gzip", BLOB),
    "twice": ("gzip, GZIP", gzip.compress(gzip.compress(BLOB))),
    "in two members": ("gzip", gzip.compress(BLOB[:5000]) + gzip.compress(BLOB[5000:])),
    "bare": ("deflate", zlib.compress(BLOB, wbits=-15)),
    "of an object storage": ("aws-chunked", BLOB),
    "with one that is none": ("identity, gzip", gzip.compress(BLOB)),
}


@pytest.mark.parametrize("how", ODD_CODINGS)
def test_a_shard_comes_through_whatever_is_said_of_its_coding(tmp_path: Path, how: str) -> None:
    coding, data = ODD_CODINGS[how]
    with serving(lambda _: Answer(200, data, {"Content-Encoding": coding})) as server:
        assert fetched(server.url, tmp_path) == BLOB


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", ", ".join(["gzip"] * 4)])
def test_a_coding_that_is_not_read_is_weather_and_named(tmp_path: Path, coding: str) -> None:
    with serving(lambda _: Answer(200, BLOB, {"Content-Encoding": coding})) as server, pytest.raises(Unreachable, match="nobody asked for"):
        fetched(server.url, tmp_path)


@pytest.mark.parametrize("begin", [0, 10, 3000, 7000])
def test_another_range_than_was_asked_for_is_put_where_it_belongs_or_had_anew(tmp_path: Path, begin: int) -> None:
    def answer(asked: Asked) -> Answer:
        if "range" not in asked.headers:
            return Answer(200, BLOB[:5000], announced=len(BLOB))
        return Answer(206, BLOB[begin:], {"Content-Range": f"bytes {begin}-{len(BLOB) - 1}/{len(BLOB)}"})

    with serving(answer) as server:
        with pytest.raises(Unreachable):
            fetched(server.url, tmp_path)
        if begin <= 5000:
            assert fetched(server.url, tmp_path) == BLOB
        else:
            with pytest.raises(Unreachable, match="starting over"):
                fetched(server.url, tmp_path)


RESUMED: dict[str, tuple[int, int, dict[str, str]]] = {
    "as one part of several": (206, -99, {"Content-Type": "multipart/byteranges; boundary=x"}),
    "as if it were whole": (200, 0, {"Content-Range": f"bytes 5000-{len(BLOB) - 1}/{len(BLOB)}"}),
}  # fmt: skip


@pytest.mark.parametrize("how", RESUMED)
def test_a_transfer_that_something_on_the_way_resumes_in_another_way_comes_through(tmp_path: Path, how: str) -> None:
    status, more, headers = RESUMED[how]
    again = Answer(status, b"-" * -more + BLOB[5000:], headers)
    answers = iter(
        [Answer(200, BLOB[:5000], announced=len(BLOB)), again, Answer(200, BLOB, {"Content-Type": "text/html", COORDINATOR: MINE})]
    )
    with serving(lambda _: next(answers)) as server:
        got, asked = patiently(lambda: fetched(server.url, tmp_path), 5, pause=lambda _: None), len(server.asked)
    assert (got == BLOB, asked) == (True, 3 if more else 2)


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_no_more_is_written_than_was_announced(tmp_path: Path, headers: dict[str, str]) -> None:
    flood = b"\0" * 50_000_000
    data = gzip.compress(flood) if headers else flood
    with serving(lambda _: Answer(200, data, headers)) as server, pytest.raises(VisitFailed) as failed:
        fetched(server.url, tmp_path, 10, digest_of(b"x" * 10))
    assert failed.value.reason == "shard_corrupt"
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= 10


def test_a_login_page_is_no_shard(tmp_path: Path) -> None:
    with serving(lambda _: Answer.page(200)) as server, pytest.raises(NotTheCoordinator):
        fetched(server.url, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- the environment ---------------------------------------------------------------------------------------------------


def test_a_proxy_of_the_environment_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://user:geheim@127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"through the proxy http://127\.0\.0\.1:9 .*NO_PROXY=coordinator\.example") as said:
        Client("http://coordinator.example:8440", "fca_x").me()
    assert "geheim" not in said.value.message


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda _: Answer.json({"status": "ok", "version": "0.1.0"})) as proxy:
        for name in ("NO_PROXY", "no_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert Client("http://coordinator.example:8440").health().status == "ok"
        assert proxy.asked[0].path == "http://coordinator.example:8440/v1/health"


@pytest.mark.parametrize(
    ("name", "value"), [("SSL_CERT_FILE", "/nowhere/ca.pem"), ("HTTPS_PROXY", "gopher://x"), ("HTTPS_PROXY", "http://[::1")]
)
def test_an_environment_that_cannot_be_used_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="SSL_CERT_FILE, HTTPS_PROXY"):
        connection.connect("https://coordinator.example", "")


def test_advice_for_what_people_meet() -> None:
    for said, advice in (
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed", "SSL_CERT_FILE="),
        ("[SSL: WRONG_VERSION_NUMBER]", "try http://"),
    ):
        assert advice in connection.why("https://c.example", OSError(said))


def test_an_ordinary_error_keeps_its_detail() -> None:
    with serving(lambda _: ours(409, "offset_mismatch", detail={"offset": 7})) as server, pytest.raises(CoordinatorSaid) as said:
        Client(server.url, "fca_x").me()
    assert said.value.detail == {"offset": 7}
    assert json.dumps(said.value.detail)
