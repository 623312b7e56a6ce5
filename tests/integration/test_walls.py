"""What is refused before anything of it is parsed, over real sockets: strangers, floods, bodies without end, heads that never end."""

import re
import socket
import time
import unicodedata
from collections.abc import Callable
from urllib.parse import quote

import httpx
import pytest
from starlette.routing import compile_path

from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.coordinator.dashboard.pages import FORM_COOKIE
from fedcybgd.coordinator.services.agents.logins import form_token
from fedcybgd.coordinator.walls import connections, gate
from fedcybgd.coordinator.walls.rates import Rate
from fedcybgd.coordinator.walls.rules import JSON_AT_MOST, HowOften, PathRefused, check_path, rule_for
from fedcybgd.shared.contract.signatures import WINDOW_S
from tests.integration.test_signatures import again, enrolled, signed
from tests.integration.test_who_may import TABLE
from tests.support.browser import browser, sent
from tests.support.live import OFTEN, LiveCoordinator
from tests.support.visits import Hand, operator, refused, wire

MUCH = 400 << 20


class Raw:
    """A connection on which anything can be said."""

    def __init__(self, live: LiveCoordinator) -> None:
        host, port = live.url.removeprefix("http://").split(":")
        self.sock = socket.create_connection((host, int(port)), timeout=20)

    def say(self, *lines: str, end: str = "\r\n\r\n") -> "Raw":
        self.sock.sendall(("\r\n".join(lines) + end).encode())
        return self

    def answer(self) -> bytes:
        """Everything until the coordinator closes the connection."""
        heard = bytearray()
        try:
            while data := self.sock.recv(65536):
                heard += data
        except ConnectionResetError:
            pass
        return bytes(heard)


def head(method: str, path: str, **headings: str) -> tuple[str, ...]:
    return f"{method} {path} HTTP/1.1", "Host: x", *(f"{name.replace('_', '-')}: {value}" for name, value in headings.items())


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/assignments/claim", "/v1/held-out/" + "0" * 64, "/v1/anything"])
@pytest.mark.parametrize("key", [None, "Bearer fca_" + "x" * 43, "Bearer fco_" + "x" * 43, "Basic eDp5"])
def test_a_stranger_is_answered_before_the_body_is_sent(live: LiveCoordinator, path: str, key: str | None) -> None:
    method = "PUT" if "held-out" in path else "POST"
    shown = {} if key is None else {"Authorization": key}
    for told in ({"Content_Length": str(MUCH)}, {"Transfer_Encoding": "chunked"}):
        heard = Raw(live).say(*head(method, path, **shown, **told)).answer().lower()
        assert heard.startswith(b"http/1.1 401 ")
        assert b"www-authenticate: bearer" in heard
        assert b"connection: close" in heard
        assert b"fedcybgd-coordinator: " in heard  # an agent knows who says that its key is void


@pytest.mark.parametrize(
    ("key", "said"), [("nonsense", "an operator's begins with fco_"), ("fca_x", "fedagent enroll"), ("fco_x", "no operator's")]
)
def test_what_a_wrong_key_hears_is_of_the_kind_that_it_is(live: LiveCoordinator, key: str, said: str) -> None:
    assert said in refused(wire(live, key).get("/status"), 401, "unauthorized").message


def test_what_is_wrong_with_a_body_is_said(live: LiveCoordinator) -> None:
    forgotten = operator(live).post("/runs", content=b'{"name": "x"}')
    assert "sent with Content-Type: application/json" in refused(forgotten, 422, "invalid_request").message
    broken = operator(live).post("/runs", content=b"{name}", headers={"Content-Type": "application/json"})
    assert "is no JSON: Expecting property name" in refused(broken, 422, "invalid_request").message


def test_a_body_that_is_announced_too_large_is_not_awaited(live: LiveCoordinator, hand: Hand) -> None:
    heard = Raw(live).say(*head("POST", "/v1/assignments/claim", Authorization=f"Bearer {hand.key}", Content_Length=str(MUCH))).answer()
    assert heard.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"too_large"' in heard


@pytest.mark.parametrize(
    ("method", "path", "most"),
    [("POST", "/v1/assignments/claim", JSON_AT_MOST), ("POST", "/v1/agents", 64 << 10), ("POST", "/admin", 16 << 10)],
)
def test_a_body_without_a_length_ends_at_its_limit(live: LiveCoordinator, hand: Hand, method: str, path: str, most: int) -> None:
    raw = Raw(live).say(*head(method, path, Authorization=f"Bearer {hand.key}", Transfer_Encoding="chunked"))
    sent = 0
    try:
        while sent < most + (8 << 20):
            raw.sock.sendall(b"10000\r\n" + b"[" * 0x10000 + b"\r\n")
            sent += 0x10000
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert raw.answer().startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 70 + b"1" + b"}" * 70])
def test_what_is_nested_deeper_than_any_message_is_refused(live: LiveCoordinator, hand: Hand, body: bytes) -> None:
    answer = hand.http.post("/assignments/claim", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400, "too_deep")


def test_brackets_in_a_text_are_no_nesting(live: LiveCoordinator, hand: Hand) -> None:
    answer = hand.http.post("/assignments/claim", params={"wait": 0}, json={"runs": ["[" * 90 + '\\"[']})
    assert answer.status_code == 204


def test_a_form_with_a_file_is_no_login(live: LiveCoordinator) -> None:
    answer = httpx.post(f"{live.url}/admin", files={"key": ("name", b"x" * 1000)})
    refused(answer, 415, "form_refused")


def test_a_large_head_is_refused(live: LiveCoordinator) -> None:
    for lines in (["A: " + "x" * 70_000], [f"A{n}: x" for n in range(150)]):
        assert Raw(live).say(*head("GET", "/v1/health"), *lines).answer().startswith(b"HTTP/1.1 431 ")
    assert Raw(live).say(*head("GET", "/v1/health"), "A: " + "x" * 70_000, end="").answer().startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "said",
    ["", "GET /v1/hea", "GET /v1/health HTTP/1.1\r\nHost: x\r\n", "POST /v1/agents HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"],
)
def test_who_does_not_go_on_is_disconnected(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    monkeypatch.setattr(connections, "BODY_S", 0.3)
    raw = Raw(live)
    raw.sock.sendall(said.encode())
    began = time.monotonic()
    assert raw.answer() == b""
    assert time.monotonic() - began < 10


def test_a_head_that_drips_is_disconnected(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    raw, began = Raw(live), time.monotonic()
    raw.sock.sendall(b"GET /v1/health HTTP/1.1\r\nA: x")
    try:
        while time.monotonic() - began < 15:
            raw.sock.sendall(b"x")
            time.sleep(0.05)
    except (BrokenPipeError, ConnectionResetError):
        return
    pytest.fail("it may drip for ever")


def test_a_waiting_claim_is_no_slow_request(live: LiveCoordinator, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_S", "BODY_S", "IDLE_S", "UNREAD_S"):
        monkeypatch.setattr(connections, name, 0.1)
    monkeypatch.setattr(gate, "LOOK_EVERY_S", 0.1)  # from its next look on, within a second
    began = time.monotonic()
    assert hand.http.post("/assignments/claim", params={"wait": 2}, json={"runs": ["none-such"]}).status_code == 204
    assert time.monotonic() - began > 1.8
    time.sleep(0.5)  # and its connection stays open for the next
    monkeypatch.undo()
    assert hand.http.get("/agents/me").status_code == 200


def test_wrong_keys_are_slowed_and_good_ones_are_not(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators(bounds=HowOften(Rate(5, 0.01), OFTEN.calls, OFTEN.costly, OFTEN.rare, OFTEN.keyless))
    hand = Hand(live)
    wrong = wire(live, "fca_" + "x" * 43)
    seen = [wrong.post("/assignments/claim", json={}).status_code for _ in range(8)]
    assert seen == [401] * 5 + [429] * 3
    answer = wrong.get("/status")
    refused(answer, 429, "too_many_requests")
    assert int(answer.headers["retry-after"]) >= 1
    assert sent(browser(live), key="wrong").status_code == 429
    assert wire(live).post("/agents", json={"token": "fct_" + "x" * 43, "name": "a"}).status_code == 429
    # An agent and an operator behind the same address go on, also with a key that was not seen before.
    assert hand.claim("none", wait=0) is None
    assert Hand(live).http.get("/agents/me").status_code == 200
    assert sent(browser(live), key=live.operator_key).status_code == 303
    # And whoever comes through a proxy is somebody else.
    wrong.headers["X-Forwarded-For"] = "192.0.2.7"
    assert wrong.get("/status").status_code == 401


@pytest.mark.parametrize("status", [409, 200])
def test_a_token_that_is_spent_is_a_wrong_one(coordinators: Callable[..., LiveCoordinator], status: int) -> None:
    live = coordinators(bounds=HowOften(Rate(3, 0.01), OFTEN.calls, OFTEN.costly, OFTEN.rare, OFTEN.keyless))
    token = live.operator.post("/enrolment-tokens", {})["token"]
    again = {"public_key": Signer(new_private_key()).public_key} if status == 200 else {}  # what was said before is answered the same
    names = ["agent" if again else f"agent-{number}" for number in range(6)]
    asked = [wire(live).post("/agents", json={"token": token, "name": name, **again}).status_code for name in names]
    assert asked == [201, status, status, status, 429, 429]


def test_one_key_that_floods_is_slowed_alone(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators(bounds=HowOften(OFTEN.failures, Rate(10, 0.01), OFTEN.costly, OFTEN.rare, OFTEN.keyless))
    hand, other = Hand(live), Hand(live)
    seen = {hand.http.get("/agents/me").status_code for _ in range(20)}
    assert seen == {200, 429}
    assert other.http.get("/agents/me").status_code == 200


def test_who_shows_no_key_floods_no_page(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators(bounds=HowOften(OFTEN.failures, OFTEN.calls, OFTEN.costly, OFTEN.rare, Rate(15, 0.01)))

    def seen(path: str, place: str, **headers: str) -> list[int]:
        with httpx.Client(headers={"X-Forwarded-For": place, **headers}) as http:
            return [http.get(live.url + path).status_code for _ in range(18)]

    paths = {"/docs": 200, "/admin": 200, "/admin/files/admin.js": 200, "/openapi.json": 200, "/nothing": 404, "/v1/status": 401}
    for number, (path, status) in enumerate(paths.items()):
        assert seen(path, f"192.0.2.{number}") == [status] * 15 + [429] * 3
        assert set(seen("/v1/health", f"192.0.2.{number}")) == {200}
    for number, path in enumerate(("/docs", "/nothing")):
        assert seen(path, f"198.51.100.{number}", Authorization="Bearer x")[15:] == [429] * 3, "nobody looks whether that is a key"
    hand = Hand(live)
    hand.http.headers["X-Forwarded-For"] = "192.0.2.0"
    assert hand.http.get("/agents/me").status_code == 200


@pytest.mark.parametrize("shown", ["sent again", "old", "of another body", "the public key"])
def test_what_is_no_proof_spends_the_rate_of_its_address_and_not_of_its_agent(
    coordinators: Callable[..., LiveCoordinator], shown: str
) -> None:
    live = coordinators(bounds=HowOften(Rate(5, 0.001), Rate(10, 0.001), OFTEN.costly, OFTEN.rare, OFTEN.keyless))
    _, signer, _ = enrolled(live)
    http, _ = signed(live, signer)
    claim = httpx.Request("POST", f"{live.url}/v1/assignments/claim?wait=0", json={"runs": ["none-such"]})
    claim.read()
    if shown == "old":
        signer._ahead -= WINDOW_S + 10
    signer._sign(claim)
    signer._ahead = 1.5
    if shown == "sent again":
        assert again(live, claim).status_code == 204
    thief = wire(live, signer.public_key)

    def tried() -> httpx.Response:
        if shown == "the public key":
            return thief.get("/agents/me")
        return again(live, claim, **({"content": b"{}"} if shown == "of another body" else {}))

    assert [tried().status_code for _ in range(5)] == [401] * 5
    # Of wrong keys from there only when to come back is said. Whose clock goes wrong is told the time all the same.
    refused(thief.get("/agents/me"), 429, "too_many_requests")
    refused(tried(), *((401, "signature_stale") if shown == "old" else (429, "too_many_requests")))
    for _ in range(20):
        tried()
    assert {http.get("/agents/me").status_code for _ in range(8)} == {200}


def test_costly_calls_are_counted_apart_and_so_are_those_that_fill_the_audit_log(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators(bounds=HowOften(OFTEN.failures, OFTEN.calls, Rate(2, 0.01), Rate(2, 0.01), OFTEN.keyless))
    client = wire(live, live.operator_key)
    assert [client.post("/models", json={}).status_code for _ in range(4)] == [422, 422, 429, 429]
    assert client.get("/status").status_code == 200
    hand = Hand(live)
    for status in (200, 200, 429, 429):
        answer = hand.http.post("/agents/me/key")
        assert answer.status_code == status, "another key is the same agent's"
        if status == 200:
            hand.http.headers["Authorization"] = f"Bearer {answer.json()['key']}"
    assert hand.http.get("/agents/me").status_code == 200


def test_only_by_its_names(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators(hosts="Coordinator.example", proxies="127.0.0.1")
    for name in ("coordinator.example", "coordinator.example:443", "127.0.0.1:1", "localhost", "[::1]:8440"):
        assert httpx.get(f"{live.url}/v1/health", headers={"Host": name}).status_code == 200
    for name in ("evil.example", "coordinator.example.evil", "127.0.0.1.evil.example", ""):
        refused(httpx.get(f"{live.url}/v1/health", headers={"Host": name}), 421, "host_unknown")
    far = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
    refused(httpx.get(f"{live.url}/v1/health", headers={"Host": "localhost", **far}), 421, "host_unknown")
    assert httpx.get(f"{live.url}/v1/health", headers={"Host": "coordinator.example", **far}).status_code == 200


def test_others_come_by_https_through_the_proxy_alone(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators(proxies="127.0.0.1")
    client, far = wire(live, live.operator_key), {"X-Forwarded-For": "192.0.2.7"}
    assert client.get("/status").status_code == 200
    assert client.get("/status", headers={**far, "X-Forwarded-Proto": "https"}).status_code == 200
    for headings in (far, {**far, "X-Forwarded-Proto": "http"}):
        refused(client.get("/status", headers=headings), 403, "https_needed")
    assert client.get("/health", headers=far).status_code == 200


@pytest.mark.parametrize(
    "spelled", ["/admin%0A", "/admin%0a", "/admin/%0A", "/%0Aadmin", "/admin%00", "/admin%0D", "/admin%C2%85", "/admin%7F"]
)
def test_no_other_spelling_of_the_login_goes_round_its_walls(live: LiveCoordinator, spelled: str) -> None:
    """The pattern of a route may end before a newline, and the walls would take it for another page: no count, no form, no bound."""
    form = {"Cookie": f"{FORM_COOKIE}=x"}, {"form": form_token("x"), "key": live.operator_key}
    answer = httpx.post(live.url + spelled, headers=form[0], data=form[1])
    refused(answer, 400, "path_refused")
    assert "set-cookie" not in answer.headers
    assert httpx.post(f"{live.url}/admin", headers=form[0], data=form[1]).status_code == 303


ODD = [
    "\n",
    "\r",
    "\0",
    "\x1f",
    "\x7f",
    "\x85",
    "\u2028",
    "/",
    "//",
    "/.",
    "/..",
    ".",
    ";a",
    "?a",
    "#",
    "%2f",
    "%0A",
    " ",
    "\\",
    "é",
    "\ufffd",
]


def spellings(plain: str) -> list[str]:
    """Of a path: with something odd before it, behind it and within its last part, in other letters, with other slashes."""
    first, _, last = plain.rpartition("/")
    found = [spelled for odd in ODD for spelled in (odd + plain, plain + odd, f"{first}/{last[:1]}{odd}{last[1:]}")]
    return [*found, plain.upper(), plain.title(), plain.replace("/", "//"), plain.replace("/", "/./"), f"/x/..{plain}"]


def test_the_walls_know_a_path_as_the_router_does(live: LiveCoordinator) -> None:
    alike = 0
    with httpx.Client(base_url=live.url) as client:
        for route in TABLE:
            method, _, template = route.partition(" ")
            pattern, plain = compile_path(template)[0], re.sub("{[a-z_]+}", "x", template)
            for path in (path for path in spellings(plain) if pattern.match(path)):
                if any(unicodedata.category(c) == "Cc" for c in path):
                    with pytest.raises(PathRefused):
                        check_path(path)
                else:
                    alike += 1
                    assert rule_for(method, path) == rule_for(method, plain), path
            assert client.request(method, quote(plain + "\n")).status_code == 400, route
            for other in {"HEAD", "OPTIONS"} - {known.split()[0] for known in TABLE if known.endswith(f" {template}")}:
                assert client.request(other, plain).status_code == 405, route
    assert alike > 50, "those with something odd in a name"


def test_what_is_not_allowed_says_what_is(live: LiveCoordinator) -> None:
    for method, path in (("DELETE", "/v1/runs"), ("PUT", "/v1/health"), ("PATCH", "/admin"), ("POST", "/openapi.json")):
        answer = httpx.request(method, live.url + path)
        refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"]
