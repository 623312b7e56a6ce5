"""The proxy does what the harness says of it: a fault that never happened proves nothing."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.faults.proxy import FOREIGN, Proxy, Rule
from tests.support.processes import wait_for

ANSWER = b"the coordinator's own words" * 100


class Server(ThreadingHTTPServer):
    """Notes what arrives whole."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.arrived: list[bytes] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        if len(body := self.rfile.read(length)) < length:
            return
        self.server.arrived.append(body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    server.arrived.clear()
    proxy = Proxy(server.server_address[1])
    yield proxy
    proxy.close()


def post(proxy: Proxy, body: bytes = b"a delta") -> httpx.Response:
    return httpx.post(f"{proxy.url}/uploads", content=body, timeout=10)


def test_without_a_rule_it_is_not_there(proxy: Proxy, server: Server) -> None:
    assert post(proxy).content == ANSWER
    assert server.arrived == [b"a delta"]


def test_a_request_is_sent_twice(proxy: Proxy, server: Server) -> None:
    proxy.set(Rule("duplicate", requests=1))
    assert post(proxy).content == ANSWER
    assert server.arrived == [b"a delta"] * 2
    post(proxy)
    assert len(server.arrived) == 3  # the rule is over


def test_an_answer_is_lost_after_it_was_given(proxy: Proxy, server: Server) -> None:
    proxy.set(Rule("drop_answer"))
    with pytest.raises(httpx.TransportError):
        post(proxy)
    assert server.arrived == [b"a delta"]


@pytest.mark.parametrize(("kind", "amount", "arrives"), [("cut_up", 100, False), ("cut_down", 150, True), ("reset", 0, False)])
def test_a_connection_is_cut(proxy: Proxy, server: Server, kind: str, amount: int, arrives: bool) -> None:
    proxy.set(Rule(kind, amount=amount))
    with pytest.raises(httpx.TransportError):
        post(proxy, b"x" * 5000)
    assert bool(server.arrived) is arrives


@pytest.mark.parametrize("status", FOREIGN)
def test_something_else_answers(proxy: Proxy, server: Server, status: int) -> None:
    proxy.set(Rule("foreign", amount=status))
    answer = post(proxy)
    assert (answer.status_code, answer.content, server.arrived) == (status, FOREIGN[status], [])


@pytest.mark.parametrize(("kind", "amount", "least_s"), [("delay", 300, 0.3), ("throttle", 5000, 0.3), ("black_hole", 0, 0.4)])
def test_it_is_slow(proxy: Proxy, kind: str, amount: int, least_s: float) -> None:
    began = time.monotonic()
    proxy.set(Rule(kind, seconds=0.5, amount=amount))
    if kind == "black_hole":
        with pytest.raises(httpx.TransportError):
            post(proxy)
    else:
        assert post(proxy).content == ANSWER
    assert time.monotonic() - began >= least_s


def test_what_it_is_at_ends_with_it(server: Server) -> None:
    proxy = Proxy(server.server_address[1])
    held = proxy.set(Rule("black_hole", seconds=60))
    with ThreadPoolExecutor(1) as one:
        asked = one.submit(post, proxy)
        wait_for(lambda: held.met)
        proxy.close()
        with pytest.raises(httpx.TransportError):
            asked.result(5)


def test_a_rule_is_for_the_paths_that_it_names(proxy: Proxy) -> None:
    proxy.set(Rule("foreign", amount=502, path="^POST /elsewhere"))
    assert post(proxy).status_code == 200
