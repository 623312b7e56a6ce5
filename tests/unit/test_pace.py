"""How long agents wait for work in one call: as the coordinator asks, by how many there are; and as what is on the way lets them."""

from collections.abc import Iterator

import pytest

from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import Unreachable
from fedcybgd.agent.pace import ClaimPace
from fedcybgd.coordinator.domain.long_poll import wait_s
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.words import MAX_WAIT_S, WAIT
from tests.support.hostile import Answer, FakeServer, serving

USUAL_S = 25.0


@pytest.mark.parametrize(
    ("waiting", "silent_after_s", "seconds"),
    [
        (0, 90, 25),
        (2_500, 90, 25),
        (4_000, 90, 40),
        (10_000, 90, 54),
        (100_000, 90, 54),
        (100_000, 600, 55),
        (10_000, 50, 30),
        (10_000, 10, 25),
    ],
)
def test_the_more_there_are_the_longer_they_wait(waiting: int, silent_after_s: float, seconds: float) -> None:
    assert wait_s(waiting, silent_after_s) == seconds


def waits(server: FakeServer) -> list[float]:
    return [float(one.path.rpartition("wait=")[2]) for one in server.asked]


def none(said: str) -> Answer:
    return Answer(204, b"", {WAIT: said})


@pytest.mark.parametrize(
    ("said", "longest"),
    [("55", 55), ("3", USUAL_S), ("999999", MAX_WAIT_S), ("", USUAL_S), ("-9", USUAL_S), ("1e3", USUAL_S), ("nan", USUAL_S)],
)
def test_an_agent_waits_as_it_is_told_within_bounds(said: str, longest: float) -> None:
    with serving(lambda _: none(said)) as server:
        client = Client(server.url, "fca_x")
        pace = ClaimPace(client)
        assert pace.longest_s(USUAL_S) == USUAL_S
        for _ in range(2):
            pace.claim(ClaimRequest(), USUAL_S)
        assert pace.longest_s(USUAL_S) == longest
        first, second = waits(server)
        assert 0.8 * USUAL_S <= first <= USUAL_S
        assert 0.8 * longest <= second <= longest


def test_what_cuts_off_long_calls_is_given_usual_ones() -> None:
    """Twice in a row: once may be a coordinator that starts again, and one that refuses at once cuts nothing."""
    times = iter(range(0, 10_000, 20))  # each look at the clock is 20 s later
    answers: Iterator[Answer] = iter([none("55"), Answer.page(504), none("55"), Answer.page(504), Answer.page(504), none("55"), none("55")])
    with serving(lambda _: next(answers)) as server:
        pace = ClaimPace(Client(server.url, "fca_x"), lambda: float(next(times)))
        for _ in range(7):
            try:
                pace.claim(ClaimRequest(), USUAL_S)
            except Unreachable:
                continue
        assert [wait > USUAL_S for wait in waits(server)] == [False, True, True, True, True, False, False]


def test_who_is_refused_at_once_goes_on_as_told() -> None:
    answers: Iterator[Answer] = iter([none("55"), *[Answer.page(502)] * 5, none("55")])
    with serving(lambda _: next(answers)) as server:
        pace = ClaimPace(Client(server.url, "fca_x"))
        for _ in range(7):
            try:
                pace.claim(ClaimRequest(), USUAL_S)
            except Unreachable:
                continue
        assert waits(server)[-1] > USUAL_S
