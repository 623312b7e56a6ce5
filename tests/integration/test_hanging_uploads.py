"""Requests that hang with bytes of a delta, and go on when their lease or their key is another's."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from safetensors.torch import save

from fedcybgd.coordinator.services.path import receive
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from tests.integration.test_uploads import part, path
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, refused, settled, start_run, wire

pytestmark = pytest.mark.database_decides


@pytest.fixture
def run(live: LiveCoordinator, model: str, hand: Hand) -> str:
    return start_run(live, model, [hand])


@contextmanager
def hanging(
    live: LiveCoordinator,
    hand: Hand,
    assignment: LeasedAssignment,
    digest: str,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
    offset: int = 0,
) -> Iterator[Callable[[], httpx.Response]]:
    """A request that was admitted and sends nothing yet; what is yielded has it send `data`, and waits for the answer."""
    begun, go_on, begin = threading.Event(), threading.Event(), receive.begin

    def begins(*arguments: Any) -> receive.Receiving:
        receiving = begin(*arguments)
        begun.set()
        return receiving

    def late() -> Iterator[bytes]:
        go_on.wait(20)
        yield data

    def finish() -> httpx.Response:
        go_on.set()
        return answer.result(20)

    with ThreadPoolExecutor(1) as thread, wire(live, hand.key) as http:
        with monkeypatch.context() as patch:
            patch.setattr(receive, "begin", begins)
            answer = thread.submit(http.put, path(assignment, digest), params={"offset": offset}, content=late())
            assert begun.wait(20)
        try:
            yield finish
        finally:
            go_on.set()


def test_bytes_that_follow_while_it_is_checked_are_not_taken(
    live: LiveCoordinator, hand: Hand, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that was begun before hangs until the delta is checked, and then sends other bytes."""
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    digest = digest_of(data)
    answers: list[httpx.Response] = []
    with hanging(live, hand, assignment, digest, b"x" * len(data), monkeypatch) as finish:
        hand.put(assignment, data)
        monkeypatch.setattr("fedcybgd.coordinator.services.path.upload.check_structure", lambda *_: answers.append(finish()))
        assert hand.submit(assignment, digest).status_code == 202
    refused(answers[0], 409, "offset_mismatch")
    assert live.store.path(digest).read_bytes() == data
    assert settled(live, run)["rounds_done"] == 1


@pytest.mark.parametrize(("status", "code"), [(409, "stale_attempt"), (413, "delta_too_large")])
def test_a_request_that_outlasts_its_lease_spoils_nothing_of_who_has_it_next(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come"})
    first, bad = hand.take(run), digest_of(b"bad")
    arrived = first.max_delta_bytes - 1000 if status == 413 else 0
    hand.put(first, b"z" * arrived, digest=bad)
    with hanging(live, hand, first, bad, b"z" * 2000, monkeypatch, arrived) as finish:
        hand.give_back(first, "data_invalid")
        second = other.take(run)
        data = save(other.delta(second))
        other.put(second, data)
        refused(finish(), status, code)
    assert other.offset(second, digest_of(data))["offset"] == len(data)
    assert other.submit(second, digest_of(data)).status_code == 202


def give_back(live: LiveCoordinator, hand: Hand, assignment: LeasedAssignment) -> None:
    hand.give_back(assignment, "stopping")


def claim_again(live: LiveCoordinator, hand: Hand, assignment: LeasedAssignment) -> None:
    assert hand.take(assignment.run_name).attempt == 2


def revoke(live: LiveCoordinator, hand: Hand, assignment: LeasedAssignment) -> None:
    live.operator.post(f"/agents/{hand.name}/revoke")


def rotate(live: LiveCoordinator, hand: Hand, assignment: LeasedAssignment) -> None:
    """As after a theft: who has the old key goes on with what was begun with it."""
    assert hand.http.post("/agents/me/key").status_code == 200


@pytest.mark.parametrize(
    ("meanwhile", "status", "code"),
    [(give_back, 409, "lease_lost"), (claim_again, 409, "stale_attempt"), (revoke, 403, "agent_revoked"), (rotate, 401, "unauthorized")],
)
def test_bytes_are_written_only_as_long_as_lease_and_key_hold(
    live: LiveCoordinator, hand: Hand, run: str, monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[LiveCoordinator, Hand, LeasedAssignment], None], status: int, code: str,
) -> None:  # fmt: skip
    assignment, data = hand.take(run), b"z" * 2000
    arrives = part(live, assignment, digest_of(data))
    with hanging(live, hand, assignment, digest_of(data), data, monkeypatch) as finish:
        meanwhile(live, hand, assignment)
        refused(finish(), status, code)
    assert not arrives.exists()
