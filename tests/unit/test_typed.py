"""The column type of the database: JSON with a type, validated at the door."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import select, text
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from fedcybgd.coordinator.db.base import open_engine
from fedcybgd.coordinator.db.typed import Typed
from fedcybgd.shared.contract.words import JsonObject


class Base(DeclarativeBase):
    pass


class Point(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    x: int
    y: int = 7


class Loose(BaseModel):
    x: int


class Row(Base):
    __tablename__ = "row"
    id: Mapped[int] = mapped_column(primary_key=True)
    point: Mapped[Point] = mapped_column(Typed(Point))
    maybe: Mapped[Loose | None] = mapped_column(Typed(Loose))
    many: Mapped[list[Point]] = mapped_column(Typed(list[Point]))
    names: Mapped[dict[str, str]] = mapped_column(Typed(dict[str, str]))
    any: Mapped[JsonObject | None] = mapped_column(Typed(JsonObject))


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    engine = open_engine(database_url, 1)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Row(id=1, point=Point(x=1), maybe=None, many=[Point(x=2, y=3)], names={"a": "b"}))
        session.commit()
        yield session
    engine.dispose()


def test_what_goes_in_comes_out(session: Session) -> None:
    row = session.get_one(Row, 1)
    assert (row.point, row.maybe, row.many, row.names) == (Point(x=1), None, [Point(x=2, y=3)], {"a": "b"})


def test_what_is_json_already_goes_in_as_it_is_and_nothing_else_does(session: Session) -> None:
    given: JsonObject = {"a": [1, 2.5, None, True, {"b": "ü"}], "c": {}}
    column = Typed(JsonObject)
    assert column.process_bind_param(given, session.get_bind().dialect) is given
    session.get_one(Row, 1).any = given
    session.commit()
    assert session.scalars(select(Row.any)).one() == given
    for wrong in ({"a": Point(x=1)}, {"a": (1, 2)}, {"a": b"x"}, {1: 2}, [1]):
        with pytest.raises(ValidationError):
            column.process_bind_param(wrong, session.get_bind().dialect)  # type: ignore[arg-type]


def test_a_column_alone_has_its_type_too(session: Session) -> None:
    assert session.scalars(select(Row.point)).all() == [Point(x=1)]
    assert session.execute(select(Row.id, Row.maybe)).one() == (1, None)


def test_it_is_written_as_plain_json(session: Session) -> None:
    stored = session.execute(text("SELECT CAST(point AS TEXT), CAST(many AS TEXT), maybe FROM row")).one()
    assert tuple(stored) == ('{"x": 1, "y": 7}', '[{"x": 2, "y": 3}]', None)


def test_an_older_row_takes_defaults_and_a_newer_one_loses_what_is_not_known(session: Session) -> None:
    session.execute(text("""UPDATE row SET point = '{"x": 5, "gone": true}', maybe = 'null'"""))
    row = session.scalars(select(Row).execution_options(populate_existing=True)).one()
    assert (row.point, row.maybe) == (Point(x=5, y=7), None)


def test_what_is_wrong_in_the_database_is_named(session: Session) -> None:
    session.execute(text("""UPDATE row SET point = '{"x": "five"}'"""))
    with pytest.raises(ValidationError, match="x"):
        session.scalars(select(Row.point)).all()


def wrong_values(row: Row) -> Iterator[tuple[str, object]]:
    yield "point", {"x": 1}
    yield "point", Loose(x=1)
    yield "maybe", Point(x=1)
    yield "many", Point(x=1)
    yield "many", [{"x": 1}]
    yield "names", {"a": 1}


@pytest.mark.parametrize(("column", "value"), list(wrong_values(Row())), ids=str)
def test_another_type_is_not_let_in(session: Session, column: str, value: object) -> None:
    row = session.get_one(Row, 1)
    setattr(row, column, value)
    with pytest.raises(StatementError, match=r"[vV]alid|[eE]xpected"):
        session.flush()


def test_equal_texts_of_a_frozen_model_are_parsed_once(session: Session) -> None:
    session.add(Row(id=2, point=Point(x=1), maybe=Loose(x=1), many=[], names={}))
    session.add(Row(id=3, point=Point(x=1), maybe=Loose(x=1), many=[], names={}))
    session.commit()
    two, three = session.get_one(Row, 2), session.get_one(Row, 3)
    assert two.point is three.point
    assert two.maybe is not three.maybe, "what can be changed is nobody else's"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcybgd.coordinator.db.typed.KEPT_CHARACTERS", 40)
    load = Typed(Point)._load
    first = load('{"x": 1, "y": 1}')
    assert load('{"x": 1, "y": 1}') is first
    for y in range(3):
        load(f'{{"x": 2, "y": {y}}}')
    assert load('{"x": 1, "y": 1}') is not first
