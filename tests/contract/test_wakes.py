"""One class of promises, run over every implementation of `Wakes`; news is committed, as it is in the product."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.notices import MOST_BYTES
from fedcybgd.coordinator.db.signals import Signals
from fedcybgd.coordinator.wakes.base import Wakes
from fedcybgd.coordinator.wakes.carried import carry
from fedcybgd.coordinator.wakes.local import LocalWakes
from fedcybgd.coordinator.wakes.postgres import PostgresWakes, understood
from tests.support.bus import Bus, BusWakes
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for

LITTLE = Signals(lanes={"slow"})
ALL = Signals(
    openings=True, offered={"asg_1", "asg_2"}, invited={"agt_1"}, let_go={"agt_2"}, forgotten={"agt_3"}, offers=True,
    lanes={"quick", "slow"}, holding={"agt_4"},
)  # fmt: skip
ANEW = Signals(anew=True)
IMPLEMENTATIONS = ["local", "bus", pytest.param("postgres", marks=pytest.mark.postgresql)]


@dataclass
class Ends:
    """Where news is committed, and who may hear it: in the same process, and in another where there can be one."""

    database: Database
    here: Wakes
    there: Wakes

    def __iter__(self) -> Iterator[Wakes]:
        return iter([self.here] if self.here is self.there else [self.here, self.there])

    def commit(self, news: Signals) -> None:
        with self.database.transaction() as session:
            session.execute(text("SELECT 1"))
            session.info["signals"] = news

    def heard(self, by: Wakes) -> list[Signals]:
        """What is heard from now on, but for what is heard at the beginning."""
        heard: list[Signals] = []
        by.hear(lambda news: None if news == ANEW else heard.append(news))
        wait_for(by.listens)
        return heard


@pytest.fixture(params=IMPLEMENTATIONS)
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    url, bus = f"sqlite:///{tmp_path / 'test.db'}", Bus()
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.new_database()
    make: dict[str, Callable[[], Wakes]] = {"local": LocalWakes, "bus": lambda: BusWakes(bus), "postgres": lambda: PostgresWakes(url)}
    here = make[request.param]()
    ends = Ends(Database(url), here, here if request.param == "local" else make[request.param]())
    carry(ends.database, here)
    yield ends
    for wakes in ends:
        wakes.close()
    ends.database.close()


def offered(number: int) -> Signals:
    return Signals(offered={str(number)})


def once(news: list[Signals]) -> list[Signals]:
    """It may be told twice."""
    return [each for i, each in enumerate(news) if i == 0 or each != news[i - 1]]


@pytest.mark.database_decides
class TestWakes:
    def test_all_that_is_committed_is_heard_as_it_was_said(self, ends: Ends) -> None:
        heard = [ends.heard(wakes) for wakes in ends]
        ends.commit(ALL)
        ends.commit(LITTLE)
        for one in heard:
            wait_for(lambda one=one: once(one) == [ALL, LITTLE])

    def test_everybody_hears_it(self, ends: Ends) -> None:
        heard = [ends.heard(wakes) for wakes in ends for _ in range(2)]
        ends.commit(ALL)
        wait_for(lambda: all(ALL in one for one in heard))

    def test_of_a_transaction_that_is_rolled_back_nothing_is_heard(self, ends: Ends) -> None:
        heard = [ends.heard(wakes) for wakes in ends]
        with pytest.raises(IntegrityError):
            self._fail(ends)
        with ends.database.transaction() as session:
            signals.offer(session, "asg_undone")
            session.execute(text("SELECT 1"))
            session.rollback()
            signals.start_lane(session, "slow")
        for one in heard:
            wait_for(lambda one=one: LITTLE in one)
            assert once(one) == [LITTLE]

    @staticmethod
    def _fail(ends: Ends) -> None:
        with ends.database.transaction() as session:
            signals.offer(session, "asg_undone")
            session.execute(text("CREATE TABLE one (id INTEGER PRIMARY KEY)"))
            session.execute(text("INSERT INTO one VALUES (1), (1)"))

    def test_nothing_is_heard_before_the_commit(self, ends: Ends) -> None:
        heard = [ends.heard(wakes) for wakes in ends]
        with ends.database.transaction() as session:
            signals.offer(session, "asg_1")
            session.execute(text("SELECT 1"))
            assert not any(heard)
        wait_for(lambda: all(heard))

    def test_news_of_one_thread_keeps_its_order_and_that_of_others_is_not_lost(self, ends: Ends) -> None:
        heard = [ends.heard(wakes) for wakes in ends]
        threads = [threading.Thread(target=lambda k=k: [ends.commit(offered(100 * k + i)) for i in range(50)]) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in heard:
            wait_for(lambda one=one: len(once(one)) >= 200)
            numbers = [int(next(iter(news.offered))) for news in one]
            for k in range(4):
                mine = [number for number in numbers if number // 100 == k]
                assert sorted(set(mine)) == list(range(100 * k, 100 * k + 50))
                assert mine == sorted(mine)

    def test_who_stumbles_over_news_hinders_nobody(self, ends: Ends) -> None:
        def stumble(_news: Signals) -> None:
            raise RuntimeError("no event loop")

        for wakes in ends:
            wakes.hear(stumble)
        heard = [ends.heard(wakes) for wakes in ends]
        ends.commit(ALL)
        ends.commit(LITTLE)
        wait_for(lambda: all(LITTLE in one for one in heard))

    def test_what_is_too_much_to_be_told_has_others_read_anew(self, ends: Ends) -> None:
        news: list[list[Signals]] = []
        for wakes in ends:
            news.append([])
            wakes.hear(news[-1].append)
            wait_for(wakes.listens)
        begun = [len(one) for one in news]
        ends.commit(much := Signals(forgotten={f"agt_{number:016x}" for number in range(MOST_BYTES // 20)}))
        for one, before in zip(news, begun, strict=True):
            wait_for(lambda one=one, before=before: any(told in (much, ANEW) for told in one[before:]))

    def test_nothing_is_heard_after_the_end(self, ends: Ends) -> None:
        heard = [ends.heard(wakes) for wakes in ends]
        ends.commit(LITTLE)
        wait_for(lambda: all(heard))
        ends.there.close()
        before = list(heard[-1])
        ends.commit(ALL)
        if ends.here is not ends.there:
            wait_for(lambda: ALL in heard[0])  # so it is on its way no more
        assert heard[-1] == before


@pytest.mark.database_decides
@pytest.mark.postgresql
def test_who_has_not_listened_for_a_while_knows_it_and_reads_anew(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    wakes, news = PostgresWakes(url), list[Signals]()
    wakes.hear(news.append)
    wait_for(wakes.listens)
    wait_for(lambda: news == [ANEW])
    with postgres.closed(url):
        wait_for(lambda: not wakes.listens())
    wait_for(lambda: news == [ANEW, ANEW])
    wait_for(wakes.listens)
    wakes.close()


@pytest.mark.parametrize("notice", ["", "[]", "1", '{"lanes": 3}', "null"])
def test_a_notice_that_nobody_understands_has_all_read_anew(notice: str) -> None:
    assert understood(notice) == ("", ANEW)


def test_of_another_version_is_understood_what_is_known_here() -> None:
    assert understood('{"from":"ab","lanes":["slow"],"moons":["io"]}') == ("ab", LITTLE)
