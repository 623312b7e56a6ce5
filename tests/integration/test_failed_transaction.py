"""A request that fails in the middle leaves the database usable for all others."""

import pytest
from sqlalchemy import func, select

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Event
from tests.support.migrated import begin_with_schema

pytestmark = pytest.mark.database_decides


@pytest.mark.parametrize("kind", ["reading", "transaction"])
def test_a_result_left_half_read_does_not_lock_later_writers_out(database_url: str, kind: str) -> None:
    begin_with_schema(database_url)
    failing, other = Database(database_url), Database(database_url)
    _write(failing)

    def fail() -> None:
        with getattr(failing, kind)() as session:
            raise TypeError(session.execute(select(Event.id)))  # the error keeps the result alive

    with pytest.raises(TypeError) as kept:
        fail()

    _write(other)  # the snapshot of the failed one is an old one from here on
    _write(failing)
    with failing.reading() as session:
        assert session.scalar(select(func.count()).select_from(Event)) == 30
    assert kept.value.args
    failing.close()
    other.close()


def _write(database: Database) -> None:
    with database.transaction() as session:
        session.add_all(Event(at=utcnow(), level="info", code="test", message=str(number)) for number in range(10))
