"""What operators look at costs the same after four times as many rounds: as many statements, and as many steps of the database."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from benchmarks.busy_seed import BIG, Seed
from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.models import Run
from fedcybgd.coordinator.db.paging import Listed, Page
from fedcybgd.coordinator.services.read import block_map, cards, comparison, diagnosis, events, lists, series, status, timeline
from fedcybgd.coordinator.services.upkeep import garbage
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import open_store
from fedcybgd.coordinator.sweeper import tidy
from tests.support.migrated import begin_with_schema

NOW = datetime(2027, 1, 1, tzinfo=UTC)
AGENTS, BLOCKS, ROUNDS = 12, 4, 440
"""More rounds than any page or view shows of anything: a hundred evaluations, one each cycle."""
STEPS = 100
"""Of SQLite's virtual machine, between two counts"""
Read = Callable[[Session], Any]
PAGE = Page(limit=20)
READS: dict[str, Read] = {
    "status": lambda s: status.overview(s, NOW, "here", 0, []),
    "run": lambda s: status.run_status(s, BIG, NOW),
    "runs": lambda s: lists.runs(s, PAGE),
    "rounds": lambda s: lists.rounds(s, BIG, PAGE),
    "assignments": lambda s: lists.assignments(s, BIG, PAGE),
    "traffic": lambda s: lists.traffic(s, BIG, PAGE),
    "members": lambda s: lists.members(s, BIG, PAGE),
    "exposure": lambda s: lists.exposure(s, None, PAGE),
    "exposure of an agent": lambda s: lists.exposure(s, "agent-00001", PAGE),
    "agents": lambda s: lists.agents(s, PAGE),
    "models": lambda s: lists.models(s, PAGE),
    "cards": lambda s: cards.going(s, NOW, 20),
    "block map": lambda s: block_map.of_run(s, big(s), PAGE),
    "versions of a block": lambda s: block_map.versions_of(s, big(s), "norm", PAGE),
    "timeline": lambda s: timeline.of_run(s, BIG, PAGE),
    "diagnosis": lambda s: diagnosis.of(s, big(s), NOW),
    "comparison": lambda s: comparison.of(s, [BIG], 20),
    "visits of an agent": lambda s: timeline.of_agent(s, "agent-00001", PAGE),
    "series": lambda s: series.of_run(s, big(s), 20),
    "events": lambda s: events.listed(s, events.Wanted(run=BIG), PAGE),
    "events of a code": lambda s: events.listed(s, events.Wanted(code="round_closed"), PAGE),
    "acts": lambda s: lists.acts(s, PAGE, newest_first=True),
    "what is needed": lambda s: garbage.needed(s, NOW),
}


def big(session: Session) -> Run:
    return queries.run_by_name(session, BIG)


class Filled:
    def __init__(self, folder: Path, rounds: int) -> None:
        begin_with_schema(url := f"sqlite:///{folder / 'coordinator.db'}")
        self.database = Database(url)
        self.home = folder
        Seed(self.database, folder / "blobs", AGENTS, rounds, BLOCKS).fill()

    def cost(self, read: Read) -> tuple[int, int]:
        """Statements, and hundreds of steps."""
        counted = {"statements": 0, "steps": 0}

        def asked(*_: Any) -> None:
            counted["statements"] += 1

        def stepped() -> None:
            counted["steps"] += 1

        event.listen(self.database.engine, "before_cursor_execute", asked)
        try:
            with self.database.reading() as session:
                connection: Any = session.connection().connection.driver_connection
                connection.set_progress_handler(stepped, STEPS)
                try:
                    read(session)
                finally:
                    connection.set_progress_handler(None, STEPS)
        finally:
            event.remove(self.database.engine, "before_cursor_execute", asked)
        return counted["statements"], counted["steps"]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    filled = Filled(tmp_path_factory.mktemp("few"), ROUNDS)
    yield filled
    filled.database.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    filled = Filled(tmp_path_factory.mktemp("many"), 4 * ROUNDS)
    yield filled
    filled.database.close()


@pytest.mark.parametrize("what", READS)
def test_it_costs_the_same_after_four_times_as_many_rounds(few: Filled, many: Filled, what: str) -> None:
    (statements, steps), (later_statements, later_steps) = few.cost(READS[what]), many.cost(READS[what])
    assert later_statements == statements
    assert later_steps <= 1.1 * steps + 5, f"{STEPS * steps} steps grew to {STEPS * later_steps}"


WALKED: dict[str, Callable[[Session, Page], Listed[Any]]] = {
    "rounds": lambda s, page: lists.rounds(s, BIG, page),
    "assignments": lambda s, page: lists.assignments(s, BIG, page),
    "traffic": lambda s, page: lists.traffic(s, BIG, page),
    "exposure": lambda s, page: lists.exposure(s, None, page),
    "timeline": lambda s, page: timeline.of_run(s, BIG, page),
    "events": lambda s, page: events.listed(s, events.Wanted(run=BIG), page),
    "exposure of an agent": lambda s, page: lists.exposure(s, "agent-00001", page),
}


@pytest.mark.parametrize("what", WALKED)
def test_the_last_page_costs_what_the_first_does(many: Filled, what: str) -> None:
    page = PAGE
    places = []
    with many.database.reading() as session:
        while (found := WALKED[what](session, Page(page.after, 200))).next is not None:
            places.append(page := Page(found.next, PAGE.limit))
    first, last = (many.cost(lambda s, at=at: WALKED[what](s, at)) for at in (PAGE, places[-1]))  # type: ignore[misc]
    assert last[0] == first[0]
    assert last[1] <= 1.3 * first[1] + 5


def test_nobody_waits_to_write_while_the_database_is_looked_through(many: Filled) -> None:
    """The collector reads everything, in a transaction that only reads; what it writes down, the last of a tidy, needs no look."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement.split()[0] + (" IMMEDIATE" if "IMMEDIATE" in statement else ""))

    settings = Settings(home=many.home, database_url=many.database.url)
    settings.uploads.mkdir(exist_ok=True)
    event.listen(many.database.engine, "before_cursor_execute", note)
    try:
        tidy(settings, many.database, open_store(settings.blobs), NOW)
    finally:
        event.remove(many.database.engine, "before_cursor_execute", note)
    begun = len(asked) - 1 - asked[::-1].index("BEGIN IMMEDIATE")
    assert asked[:begun].count("SELECT") > 5
    assert "SELECT" not in asked[begun:]


def test_a_view_shows_the_newest_and_counts_the_rest(many: Filled) -> None:
    with many.database.reading() as session:
        view, everything = status.run_status(session, BIG, NOW), status.overview(session, NOW, "here", 0, [])
        assert view.rounds_done == 4 * ROUNDS
        assert [r.number for r in view.rounds] == list(range(4 * ROUNDS, 4 * ROUNDS - status.ROUNDS_SHOWN, -1))
        assert len(view.evaluations) == status.SHOWN
        assert view.evaluations[-1].after_rounds == 4 * ROUNDS - BLOCKS
        assert view.participant_count == len(view.participants) == AGENTS
        assert view.bytes.up == 4 * ROUNDS * (1 << 29)
        assert everything.bytes == view.bytes
        assert everything.agents_by_state == {"active": AGENTS}
        assert view.readiness == {"ready": AGENTS}
        assert view.pace is not None
        assert view.seconds_left is None, "it has stood still for weeks by now"
        assert view.pace.still is not None
        soon = queries.last_round(session, view.id).opened_at + timedelta(seconds=1)  # type: ignore[union-attr]
        going = status.run_status(session, BIG, soon)
        assert going.seconds_left is not None
        assert timedelta(seconds=going.seconds_left) > timedelta(0)
