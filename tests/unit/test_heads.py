"""The head of an answer is waited for as long as the time-out says, whatever comes before its end; its body byte by byte."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from fedcybgd.agent import connection
from fedcybgd.agent.elsewhere import OtherHosts
from fedcybgd.agent.heads import bound_heads
from fedcybgd.agent.site import asking

PATIENCE_S = 0.5
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"


@contextlib.contextmanager
def answering(pieces: Callable[[], Iterator[bytes]]) -> Iterator[str]:
    """The address of a server that sends these pieces, a tenth of a second apart, on one connection after another."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    there, _ = server.accept()
                except OSError:
                    return
                with there, contextlib.suppress(OSError):
                    there.recv(1 << 16)
                    for piece in pieces():
                        there.sendall(piece)
                        time.sleep(0.1)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def again(piece: bytes) -> Iterator[bytes]:
    for _ in range(100):
        yield piece


def slowly(text: bytes) -> Iterator[bytes]:
    for place in range(len(text)):
        yield text[place : place + 1]


CLIENTS: dict[str, Callable[[str], httpx.Client]] = {
    "agent": lambda url: connection.connect(url, ""),
    "site cache": asking._connect,
    "elsewhere": lambda _: OtherHosts()._client(None),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_announcements_without_end_are_no_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("agent.connection", "agent.elsewhere", "agent.site.asking"):
        monkeypatch.setattr(f"fedcybgd.{module}.TIMEOUT", httpx.Timeout(PATIENCE_S))
    with answering(lambda: again(EARLY)) as url, CLIENTS[name](url) as client:
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            client.get(f"{url}/x")
        assert time.monotonic() - began < 6 * PATIENCE_S


@pytest.mark.parametrize(
    ("pieces", "comes"),
    [
        (lambda: slowly(GOOD), False),
        (lambda: again(b"HTTP/1.1 100 \r\n\r\n"), False),
        (lambda: iter([EARLY, EARLY, GOOD, *[b"x"] * 8]), True),
        (lambda: iter([GOOD.replace(b"\r", b""), *[b"x"] * 8]), True),
        (lambda: iter([EARLY + GOOD[:30], GOOD[30:] + b"x", *[b"x"] * 7]), True),
    ],
)
def test_a_body_may_take_longer_than_its_head(pieces: Callable[[], Iterator[bytes]], comes: bool) -> None:
    with answering(pieces) as url, bound_heads(httpx.Client(timeout=PATIENCE_S)) as client:
        if comes:
            assert client.get(url).content == b"xxxxxxxx"
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.get(url)
