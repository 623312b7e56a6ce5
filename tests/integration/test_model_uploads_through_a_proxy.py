"""Models that are uploaded past a proxy which lets only small bodies through: in smaller pieces, until they arrive."""

from pathlib import Path

import httpx
import pytest

from fedcybgd import Client
from fedcybgd.client import uploading
from fedcybgd.client.errors import BodyLimited
from tests.support.live import LiveCoordinator
from tests.support.uploading import client, files_of
from tests.support.visits import fresh


class Proxy(httpx.HTTPTransport):
    def __init__(self, limit: int, cuts: bool) -> None:
        """`cuts`: it closes the connection in the middle of a body that is too large, and its answer is not heard."""
        super().__init__()
        self._limit, self._cuts = limit, cuts
        self.passed: list[int] = []
        self.refused: list[int] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        size = int(request.headers.get("Content-Length", 0))
        if request.method != "PUT":
            return super().handle_request(request)
        if size > self._limit:
            self.refused.append(size)
            if self._cuts:
                raise httpx.WriteError("broken pipe", request=request)
            return httpx.Response(413, stream=httpx.ByteStream(b"<h1>Request Entity Too Large</h1>"), request=request)
        self.passed.append(size)
        return super().handle_request(request)


def behind(live: LiveCoordinator, proxy: Proxy) -> Client:
    far = client(live)
    far.connection._http._transport = proxy
    return far


def test_pieces_are_halved_until_they_get_through(live: LiveCoordinator, bert: Path) -> None:
    proxy = Proxy(20_000, cuts=False)
    assert behind(live, proxy).models.upload(bert, fresh("small")).state == "ready"
    largest = max(len(data) for data in files_of(bert).values())
    assert 0 < len(proxy.refused) < 20, "what was learnt of one piece holds for the next, and for other files"
    assert max(proxy.refused) == largest
    assert 16 << 10 <= max(proxy.passed) <= 20_000


def test_a_body_that_is_cut_is_sent_in_smaller_pieces(live: LiveCoordinator, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "PAUSE_S", 0.0)
    monkeypatch.setattr(uploading, "SHORT", 4000)
    proxy = Proxy(20_000, cuts=True)
    assert behind(live, proxy).models.upload(bert, fresh("cut")).state == "ready"
    assert proxy.refused


def test_where_the_smallest_is_too_large_the_limit_is_named(live: LiveCoordinator, bert: Path) -> None:
    with pytest.raises(BodyLimited, match=r"413 to a body of \d+ bytes.*client_max_body_size") as said:
        behind(live, Proxy(1000, cuts=False)).models.upload(bert, fresh("none"))
    assert said.value.code == "proxy_body_limit"
