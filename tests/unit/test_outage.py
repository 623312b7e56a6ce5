"""What may pass is told from what never will."""

import sqlite3

import pytest
from sqlalchemy import create_engine, exc, text

from fedcybgd.coordinator.db.outage import is_away, reason, was_overtaken


def caught(statement: str, *before: str) -> Exception:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        for step in before:
            connection.execute(text(step))
        with pytest.raises(exc.SQLAlchemyError) as error:
            connection.execute(text(statement))
    return error.value


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (caught("SELECT * FROM nowhere"), False),
        (caught("INSERT INTO t VALUES (1)", "CREATE TABLE t (n INTEGER UNIQUE)", "INSERT INTO t VALUES (1)"), False),
        (caught("INSERT INTO t VALUES (1)", "CREATE TABLE t (n INTEGER)", "PRAGMA query_only=ON"), True),
        (caught("INSERT INTO t SELECT randomblob(9000)", "PRAGMA max_page_count=2", "CREATE TABLE t (n BLOB)"), True),
        (exc.OperationalError("SELECT 1", {}, sqlite3.OperationalError("database is locked")), True),
        (exc.InterfaceError("SELECT 1", {}, Exception("closed")), True),
        (exc.DatabaseError("SELECT 1", {}, sqlite3.DatabaseError("database disk image is malformed")), True),
        (exc.ProgrammingError("SELECT 1", {}, Exception("no such function")), False),
        (exc.ProgrammingError("SELECT 1", {}, Exception("closed"), connection_invalidated=True), True),
        (exc.TimeoutError("no connection was free"), True),
        (ValueError("a mistake"), False),
        (OSError(28, "No space left on device"), False),
    ],
    ids=lambda value: f"{type(value).__name__}",
)  # fmt: skip
def test_only_what_may_pass_is_waited_for(error: Exception, away: bool) -> None:
    assert is_away(error) is away


@pytest.mark.parametrize(("sqlstate", "again"), [("40P01", True), ("40001", True), ("57P01", False), (None, False)])
def test_a_transaction_is_run_again_when_it_was_in_anothers_way(sqlstate: str | None, again: bool) -> None:
    cause = Exception("deadlock detected")
    cause.sqlstate = sqlstate  # type: ignore[attr-defined]
    assert was_overtaken(exc.OperationalError("UPDATE …", {}, cause)) is again


def test_the_reason_for_people_has_no_sql() -> None:
    assert reason(caught("SELECT * FROM nowhere")) == "OperationalError: no such table: nowhere"
    assert reason(ValueError("a mistake")) == "ValueError: a mistake"
