"""What may be different the next time is tried again; everything else is left alone."""

import time
from email.utils import formatdate

import httpx
import pytest

from fedcybgd.agent.answers import something_else
from fedcybgd.agent.errors import (
    AgentError,
    ConfigError,
    CoordinatorSaid,
    KeyRefused,
    LeaseGone,
    NotEnrolled,
    NotTheCoordinator,
    ProxyBodyLimit,
    SignatureRefused,
    StopRequested,
    Unreachable,
    VisitFailed,
)
from fedcybgd.agent.retry import is_retryable, patiently

AGAIN = {408, 425, 429, 500, 502, 503, 504, 507}


@pytest.mark.parametrize("status", sorted(AGAIN | {400, 401, 403, 404, 405, 409, 410, 413, 416, 422, 501, 505}))
def test_answers(status: int) -> None:
    assert is_retryable(CoordinatorSaid(status, "code", "message")) is (status in AGAIN)


@pytest.mark.parametrize(
    "error",
    [
        Unreachable("no answer"),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadError("cut"),
        httpx.ReadTimeout("slow"),
        httpx.WriteError("cut"),
        httpx.RemoteProtocolError("cut"),
        httpx.PoolTimeout("busy"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_no_answer_is_tried_again(error: Exception) -> None:
    assert is_retryable(error)


@pytest.mark.parametrize(
    "error",
    [
        KeyRefused(401, "unauthorized", "no"),
        VisitFailed("disk_full", "full"),
        LeaseGone("gone"),
        ConfigError("wrong"),
        NotEnrolled("no key"),
        AgentError("other"),
        httpx.InvalidURL("no"),
        ValueError("a mistake of ours"),
        OSError("disk"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_what_stays_as_it_is_is_not_tried_again(error: Exception) -> None:
    assert not is_retryable(error)


class Flaky:
    """Fails with the given errors one after another, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_it_calls_until_it_works_and_tells_of_each_failure() -> None:
    call, told = Flaky(Unreachable("one"), CoordinatorSaid(503, "busy", "two"), httpx.ReadError("three")), []
    assert patiently(call, waited=lambda error: told.append(str(error)), pause=lambda _: None) == "answer"
    assert call.calls == 4
    assert told == ["one", "two", "three"]


@pytest.mark.parametrize(
    "error", [CoordinatorSaid(409, "stale_attempt", "no"), StopRequested(), ValueError("no")], ids=lambda e: type(e).__name__
)
def test_what_is_not_worth_it_comes_through_at_once(error: Exception) -> None:
    call, told = Flaky(error), []
    with pytest.raises(type(error)) as raised:
        patiently(call, waited=told.append)
    assert raised.value is error
    assert call.calls == 1
    assert told == []


def test_the_last_error_comes_through_when_time_is_up() -> None:
    call = Flaky(*(Unreachable(str(i)) for i in range(100)))
    with pytest.raises(Unreachable):
        patiently(call, timeout=0.3)
    assert 1 <= call.calls < 100


def test_a_wait_that_raises_ends_the_waiting() -> None:
    def stopped(_seconds: float) -> None:
        raise StopRequested

    call = Flaky(Unreachable("one"), Unreachable("two"))
    with pytest.raises(StopRequested):
        patiently(call, pause=stopped)
    assert call.calls == 1


def test_the_limit_of_a_proxy_is_waited_for_long() -> None:
    slept: list[float] = []
    assert patiently(Flaky(*(ProxyBodyLimit("413", 7) for _ in range(4))), pause=slept.append) == "answer"
    assert max(slept[:3]) < 3, "a moment of it is weather"
    assert 240 <= slept[3] <= 360


def waits(times: int, error: Exception) -> list[float]:
    """Seconds after each of so many failures."""
    slept: list[float] = []
    assert patiently(Flaky(*(error for _ in range(times))), pause=slept.append) == "answer"
    return slept


def test_waits_grow_and_are_not_the_same_for_all_agents() -> None:
    first, second = waits(20, Unreachable("x")), waits(20, Unreachable("x"))
    assert first != second, "jitter"
    assert max(first[:2]) < 2
    assert max(first) <= 61
    assert first[-1] >= 60


def test_what_gets_further_between_its_failures_is_gone_on_with_soon() -> None:
    slept: list[float] = []
    assert patiently(Flaky(*(Unreachable("cut") for _ in range(30))), pause=slept.append, further=lambda: len(slept) // 3) == "answer"
    assert max(slept) < 2.1, "no three of them had got nowhere"


UNHEARD = [Unreachable("x"), httpx.ConnectError("refused"), NotTheCoordinator("bad gateway", 502)]


@pytest.mark.parametrize("error", UNHEARD, ids=lambda e: type(e).__name__)
def test_a_coordinator_that_starts_again_is_asked_again_within_four_seconds(error: Exception) -> None:
    slept = waits(20, error)
    within = [wait for at, wait in enumerate(slept) if sum(slept[:at]) < 25]
    assert max(within) <= 4
    assert max(slept[:5]) < 2.1, "it is up again after some seconds, mostly"


def test_one_that_answers_and_is_overburdened_is_left_alone_sooner() -> None:
    assert max(waits(8, CoordinatorSaid(503, "busy", "later"))) >= 12.8


@pytest.mark.parametrize(
    "answer", [SignatureRefused(401, "signature_stale", "no"), CoordinatorSaid(503, "starting", "no"), ProxyBodyLimit("413", 7)]
)
def test_a_first_answer_after_a_long_absence_does_not_count_for_more(answer: Exception) -> None:
    slept: list[float] = []
    assert patiently(Flaky(*(Unreachable("x") for _ in range(9)), answer), pause=slept.append) == "answer"
    assert slept[-1] < 1.3


def test_a_thousand_agents_come_back_one_after_another() -> None:
    """All lose the coordinator at once, and it is back after 10 seconds: in none of those that follow do more than half of them ask."""
    asked: list[float] = []
    for _ in range(1000):
        at, failures = 0.0, iter(waits(20, Unreachable("x")))
        while at < 10:
            at += next(failures)
        asked.append(at)
    assert max(asked) <= 14
    assert max(sum(second <= at < second + 1 for at in asked) for second in range(10, 15)) < 500


@pytest.mark.parametrize(("asked", "least"), [(7, 7), (1.5, 1.5), (10**9, 300), (-5, 0), ("soon", 0), (None, 0)])
def test_an_agent_stays_away_as_long_as_it_is_asked_to(asked: object, least: float) -> None:
    waits, answers = [], iter([CoordinatorSaid(429, "too_many_requests", "later", {"retry_after_s": asked}), None])

    def call() -> None:
        if (error := next(answers)) is not None:
            raise error

    patiently(call, pause=waits.append)
    assert least <= waits[0] < least + 1.3


@pytest.mark.parametrize(
    ("status", "said", "least"), [(429, "120", 60), (503, "7", 7), (503, "date", 20), (429, "soon", 0.2), (429, "-5", 0.2), (404, "7", 0.2)]
)
def test_what_stands_in_front_of_a_coordinator_is_left_alone_as_long_as_it_asks(status: int, said: str, least: float) -> None:
    said = formatdate(time.time() + 21, usegmt=True) if said == "date" else said
    slept: list[float] = []
    error = something_else("http://c", status, httpx.Headers({"Retry-After": said}))
    assert patiently(Flaky(error), pause=slept.append) == "answer"
    assert least - 0.5 <= slept[0] < least + 2
