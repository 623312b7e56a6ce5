"""Pages of a list are the whole list, in its order, each row once; and a place that is none is refused."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.models import Event
from fedcybgd.coordinator.db.paging import CursorInvalid, Order, Page

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
BY_TIME = Order(Event.at, Event.code, Event.id, newest_first=True)
BY_NAME = Order(Event.code, Event.id)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    # Many rows of one time and one name, so that only the last column tells them apart.
    rows = [{"at": BEGAN + timedelta(microseconds=i // 5), "level": "info", "code": f"c{i % 3}", "message": str(i)} for i in range(50)]
    with database.transaction() as filling:
        filling.execute(insert(Event), rows)
    with database.reading() as reading:
        yield reading


def walked(session: Session, order: Order, limit: int) -> tuple[list[str], int]:
    """The messages of all pages, and how many pages there were."""
    found: list[str] = []
    after, pages = None, 0
    while pages == 0 or after is not None:
        page = order.page(session, select(Event.message), Page(after, limit))
        assert len(page.items) <= limit
        found += [row.message for row in page.items]
        after, pages = page.next, pages + 1
    return found, pages


@pytest.mark.parametrize("limit", [1, 7, 25, 50, 1000])
def test_the_pages_of_a_list_are_the_list(session: Session, limit: int) -> None:
    newest = list(session.scalars(select(Event.message).order_by(Event.at.desc(), Event.code.desc(), Event.id.desc())))
    assert walked(session, BY_TIME, limit) == (newest, -(-50 // limit))
    by_name = list(session.scalars(select(Event.message).order_by(Event.code, Event.id)))
    assert walked(session, BY_NAME, limit) == (by_name, -(-50 // limit))


def test_what_is_added_meanwhile_moves_no_page(session: Session) -> None:
    first = BY_TIME.page(session, select(Event.message), Page(limit=20))
    session.add(Event(at=BEGAN + timedelta(days=1), level="info", code="c0", message="newer"))
    session.flush()
    second = BY_TIME.page(session, select(Event.message), Page(first.next, 20))
    assert {row.message for row in first.items}.isdisjoint(row.message for row in second.items)
    assert "newer" not in {row.message for row in second.items}


@pytest.mark.parametrize(
    "after",
    ["", "x", "~", "~~", "2026-01-01T00:00:00Z~c1", "2026-01-01T00:00:00Z~c1~x", "2026-01-01T00:00:00~c1~1", "yesterdayZ~c1~1",
     "2026-01-01T00:00:00Z~c1~1~1", "2026-01-01T00:00:00Z~c1~9999999999999999999", "2026-01-01T00:00:00Z~c\x001~1",
     "2026-01-01T00:00:00Z~c1~\u0661", "9999-99-99T00:00:00Z~c1~1"],
)  # fmt: skip
def test_a_place_that_is_none_is_refused(session: Session, after: str) -> None:
    with pytest.raises(CursorInvalid, match="no place in this list") as refused:
        BY_TIME.page(session, select(Event.message), Page(after))
    assert refused.value.code == "cursor_invalid"


def test_any_place_of_the_right_shape_is_answered(session: Session) -> None:
    """Rows may have gone since: what comes after the place is what comes after."""
    answered: list[Any] = BY_NAME.page(session, select(Event.message), Page("c1~-5", 3)).items  # type: ignore[assignment]
    assert [row.message for row in answered] == ["1", "4", "7"]
    assert BY_NAME.page(session, select(Event.message), Page("zzz~0")).items == []
