"""Lists in pages: each begins after the last row of the one before it, so that a page costs the same however long the list is."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Select, bindparam, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from fedcybgd.coordinator.db.base import Database, UtcDateTime
from fedcybgd.coordinator.errors import Invalid

T = TypeVar("T")
S = TypeVar("S")
BETWEEN = "~"
"""Stands between the parts of a cursor: no name, id or time has it."""


class CursorInvalid(Invalid):
    code = "cursor_invalid"


@dataclass(frozen=True)
class Page:
    """Which part of a list is wanted: at most `limit` rows, those after the place that the page before named."""

    after: str | None = None
    limit: int = 100


@dataclass(frozen=True)
class Listed(Generic[T]):
    """A page of a list; `next` is the place after which the next one begins, None at the end."""

    items: Sequence[T]
    next: str | None

    def map(self, change: Callable[[T], S]) -> "Listed[S]":
        return Listed([change(item) for item in self.items], self.next)


Read = Callable[[Session, Page], Listed[T]]


def walked(database: Database, first: Listed[T], read: Read[T], limit: int) -> Iterator[Listed[T]]:
    """The pages of a list from the first on, each read in a transaction of its own that is over before the page is given."""
    found = first
    while True:
        yield found
        if found.next is None:
            return
        with database.reading() as session:
            found = read(session, Page(found.next, limit))


class Order:
    """An order of rows by columns that no two rows have in common; an index over them makes a page cheap."""

    def __init__(self, *columns: InstrumentedAttribute[Any], newest_first: bool = False) -> None:
        self._columns, self._newest_first = columns, newest_first
        self._keys = [column.label(f"key_{number}") for number, column in enumerate(columns)]
        self._here = tuple_(*columns)
        self._by = [column.desc() if newest_first else column for column in columns]
        # By what they select: that costs more than asking.
        self._statements: WeakKeyDictionary[Select[*tuple[Any, ...]], Select[*tuple[Any, ...]]] = WeakKeyDictionary()

    def page(self, session: Session, query: Select[*tuple[Any, ...]], page: Page, **given: Any) -> Listed[Any]:
        """A page of what `query` selects, as rows; `given` are the values that it leaves open. Raises `CursorInvalid`."""
        statement = self._statements.get(query)
        if statement is None:
            statement = query.add_columns(*self._keys).order_by(*self._by).limit(bindparam("rows_of_page"))
            self._statements[query] = statement
        if page.after is not None:
            last = tuple_(*self._values(page.after), types=[column.type for column in self._columns])
            statement = statement.where(self._here < last if self._newest_first else self._here > last)
        # One more shows whether there is a next page.
        rows = session.execute(statement, {**given, "rows_of_page": page.limit + 1}).all()
        shown = rows[: page.limit]
        more = len(rows) > len(shown)
        return Listed(shown, BETWEEN.join(_text(value) for value in shown[-1][-len(self._keys) :]) if more else None)

    def _values(self, cursor: str) -> list[Any]:
        parts = cursor.split(BETWEEN)
        if len(parts) != len(self._columns):
            raise _invalid(cursor)
        return [_value(cursor, part, _kind(column)) for part, column in zip(parts, self._columns, strict=True)]


def _kind(column: InstrumentedAttribute[Any]) -> type[Any]:
    return datetime if isinstance(column.type, UtcDateTime) else column.type.python_type


def _text(value: Any) -> str:
    return value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z" if isinstance(value, datetime) else str(value)


def _value(cursor: str, text: str, kind: type[Any]) -> Any:
    if kind is int and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    if kind is datetime and text.endswith("Z"):
        try:
            return datetime.fromisoformat(text)
        except ValueError as error:
            raise _invalid(cursor) from error
    if kind is str and "\x00" not in text:
        return text
    raise _invalid(cursor)


def _invalid(cursor: str) -> CursorInvalid:
    return CursorInvalid(f"after={cursor!r:.200} is no place in this list; take it from the heading of the page before, or leave it out")
