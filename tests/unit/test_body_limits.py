"""A delta gets through a proxy that takes small bodies or short requests only, however that says so."""

from pathlib import Path

import pytest

from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import NotTheCoordinator, ProxyBodyLimit, Unreachable
from fedcybgd.agent.retry import is_retryable, patiently
from fedcybgd.agent.sending import SMALLEST, send_file
from fedcybgd.shared.contract.words import COORDINATOR
from tests.support.hostile import Answer, Asked, serving
from tests.unit.test_residuals import asg
from tests.unit.test_weather import BLOB, CALLS, DIGEST, MINE, at_once, every_call

__all__ = ["at_once"]
TOO_LARGE = Answer.page(413)
OF_A_GATEWAY = Answer.json({"code": "request_too_large", "message": "Request size limit exceeded"}, 413)


@pytest.mark.parametrize("refusal", [TOO_LARGE, OF_A_GATEWAY], ids=["a page", "json"])
@every_call
def test_a_limit_of_bodies_is_told_with_the_size_that_it_refused(call: str, refusal: Answer, tmp_path: Path) -> None:
    with serving(lambda _: refusal) as server, pytest.raises(NotTheCoordinator) as said:
        CALLS[call](Client(server.url, "fca_x", MINE), tmp_path)
    size = len(server.asked[0].body)
    assert isinstance(said.value, ProxyBodyLimit) is (size > 0), "what sends nothing sends nothing that is too large"
    assert (said.value.trouble.status, said.value.trouble.bytes) == (413, size or None)
    assert size == 0 or f"to a body of {size} bytes" in said.value.message


class Receiver:
    """Takes uploads through a proxy that lets bodies of `most` bytes through; a cut one is forgotten."""

    def __init__(self, most: int, longest: int = 1 << 40, refusal: Answer = TOO_LARGE) -> None:
        self.most, self.longest, self.refusal, self.data = most, longest, refusal, b""

    def __call__(self, asked: Asked) -> Answer:
        if asked.method == "PUT":
            if len(asked.body) > self.most:
                return self.refusal
            if len(asked.body) > self.longest:
                return Answer.page(504)
            assert asked.path.endswith(f"offset={len(self.data)}")
            self.data += asked.body
        return Answer.json({"offset": len(self.data), "complete": False}, **{COORDINATOR: MINE})


@pytest.mark.parametrize("most", [1 << 20, 1_000_000, 20_000])
def test_a_delta_goes_through_a_limit_of_bodies_in_pieces(tmp_path: Path, most: int) -> None:
    (tmp_path / "delta").write_bytes(BLOB)
    told: list[Exception] = []
    receiver = Receiver(most)
    with serving(receiver) as server:
        client = Client(server.url, "fca_x")
        send_file(client, asg(1), DIGEST, tmp_path / "delta", told.append)
        assert receiver.data == BLOB
        first = told[0] if told else None
        assert (first is None) == (most >= len(BLOB))
        if isinstance(first, ProxyBodyLimit):
            assert (first.trouble.code, first.trouble.status, first.trouble.bytes) == ("proxy_body_limit", 413, len(BLOB))
        receiver.data, before = b"", len(told)
        send_file(client, asg(1), DIGEST, tmp_path / "delta", told.append)
        assert len(told) == before, "the size that gets through is remembered"
        assert client.further == 2 * -(-len(BLOB) // (client.piece or len(BLOB))), "each piece that arrived"


def test_a_limit_below_the_smallest_piece_is_said_and_waited_for(tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(BLOB)
    with serving(Receiver(SMALLEST - 1)) as server, pytest.raises(ProxyBodyLimit, match="413 to a body of 16384 bytes") as said:
        send_file(Client(server.url, "fca_x"), asg(1), DIGEST, tmp_path / "delta", lambda _: None)
    assert is_retryable(said.value)


def test_who_says_that_nothing_arrives_is_not_sent_it_without_end(tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(BLOB)
    nothing = Answer.json({"offset": 0, "complete": False}, **{COORDINATOR: MINE})
    with serving(lambda _: nothing) as server, pytest.raises(Unreachable, match="nothing arrived"):
        send_file(Client(server.url, "fca_x"), asg(1), DIGEST, tmp_path / "delta", lambda _: None)
    assert [asked.method for asked in server.asked] == ["GET", "PUT"]


def test_requests_that_take_too_long_become_shorter(at_once: None, tmp_path: Path) -> None:
    size = 5 << 20
    (tmp_path / "delta").write_bytes(b"x" * size)
    receiver = Receiver(1 << 40, longest=3 << 20)
    with serving(receiver) as server:
        client = Client(server.url, "fca_x")
        patiently(lambda: send_file(client, asg(1), DIGEST, tmp_path / "delta", lambda _: None))
    assert len(receiver.data) == size


@pytest.mark.parametrize("status", [400, 403, 404, 406])
def test_a_limit_that_is_not_called_one_is_got_through_too(at_once: None, tmp_path: Path, status: int) -> None:
    """As a firewall's, or IIS's (404.13)."""
    (tmp_path / "delta").write_bytes(BLOB)
    receiver = Receiver(100_000, refusal=Answer.page(status))
    told: list[Exception] = []
    with serving(receiver) as server:
        client = Client(server.url, "fca_x")
        patiently(lambda: send_file(client, asg(1), DIGEST, tmp_path / "delta", lambda _: None), timeout=5, waited=told.append)
    assert receiver.data == BLOB
    assert {type(error) for error in told} == {NotTheCoordinator}


@pytest.mark.parametrize("status", [413, 200], ids=["after its head", "without a word"])
def test_a_limit_that_closes_the_connection_is_got_through_too(at_once: None, tmp_path: Path, status: int) -> None:
    """What a proxy answers before it was sent all is often lost with the connection, or half of it."""
    (tmp_path / "delta").write_bytes(BLOB)
    receiver, told = Receiver(100_000, refusal=Answer(status, b"<", {"Content-Type": "text/html"}, announced=99)), list[Exception]()
    with serving(receiver) as server:
        client = Client(server.url, "fca_x")
        patiently(lambda: send_file(client, asg(1), DIGEST, tmp_path / "delta", told.append), timeout=5, waited=told.append)
    assert receiver.data == BLOB
    assert {type(error) for error in told} == {ProxyBodyLimit if status == 413 else Unreachable}
    assert status == 413 or len(told) > 3, "a cut or two make no piece smaller"
