"""One class of promises, run over every implementation of `Wakes`."""

import threading
from collections.abc import Callable, Iterator

import pytest

from fedcybgd.coordinator.db.signals import Signals
from fedcybgd.coordinator.wakes.base import Wakes
from fedcybgd.coordinator.wakes.local import LocalWakes
from tests.support.bus import Bus, BusWakes
from tests.support.processes import wait_for

NOTHING = Signals()
ALL = Signals(
    openings=True, offered={"asg_1", "asg_2"}, invited={"agt_1"}, let_go={"agt_2"}, forgotten={"agt_3"}, offers=True,
    lanes={"quick", "slow"},
)  # fmt: skip
IMPLEMENTATIONS: dict[str, Callable[[], Wakes]] = {"local": LocalWakes, "bus": lambda: BusWakes(Bus())}


def offered(number: int) -> Signals:
    return Signals(offered={str(number)})


def once(news: list[Signals]) -> list[Signals]:
    """It may be told twice."""
    return [each for i, each in enumerate(news) if i == 0 or each != news[i - 1]]


@pytest.fixture(params=IMPLEMENTATIONS)
def wakes(request: pytest.FixtureRequest) -> Iterator[Wakes]:
    wakes = IMPLEMENTATIONS[request.param]()
    yield wakes
    wakes.close()


class TestWakes:
    def test_all_that_is_told_is_heard_as_it_was_told(self, wakes: Wakes) -> None:
        heard: list[Signals] = []
        wakes.hear(heard.append)
        wakes.tell(ALL)
        wait_for(lambda: ALL in heard)
        wakes.tell(NOTHING)
        wait_for(lambda: NOTHING in heard)
        assert once(heard) == [ALL, NOTHING]

    def test_everybody_hears_it(self, wakes: Wakes) -> None:
        one: list[Signals] = []
        other: list[Signals] = []
        wakes.hear(one.append)
        wakes.hear(other.append)
        wakes.tell(ALL)
        wait_for(lambda: ALL in one and ALL in other)

    def test_news_of_one_thread_keeps_its_order_and_that_of_others_is_not_lost(self, wakes: Wakes) -> None:
        heard: list[Signals] = []
        wakes.hear(heard.append)
        threads = [threading.Thread(target=lambda k=k: [wakes.tell(offered(100 * k + i)) for i in range(50)]) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda: len(heard) >= 200)
        numbers = [int(next(iter(news.offered))) for news in heard]
        for k in range(4):
            mine = [number for number in numbers if number // 100 == k]
            assert mine == list(range(100 * k, 100 * k + 50))

    def test_who_stumbles_over_news_hinders_nobody(self, wakes: Wakes) -> None:
        heard: list[Signals] = []

        def stumble(_news: Signals) -> None:
            raise RuntimeError("no event loop")

        wakes.hear(stumble)
        wakes.hear(heard.append)
        wakes.tell(ALL)
        wakes.tell(NOTHING)
        wait_for(lambda: NOTHING in heard)

    def test_nothing_is_heard_after_the_end(self) -> None:
        for make in IMPLEMENTATIONS.values():
            wakes = make()
            heard: list[Signals] = []
            wakes.hear(heard.append)
            wakes.tell(NOTHING)
            wait_for(lambda heard=heard: heard == [NOTHING])
            wakes.close()
            wakes.tell(ALL)
            assert heard == [NOTHING]
