"""Several threads at one job give what one would: in order, a few ahead, and errors where they belong."""

import threading
from collections.abc import Iterator

import pytest

from fedcybgd.coordinator.engine import threads
from fedcybgd.coordinator.engine.threads import ahead, at_once, in_order


def counted(made: list[int], end: int) -> Iterator[int]:
    for number in range(end):
        made.append(number)
        yield number


def test_what_is_made_comes_in_order_and_no_more_than_a_few_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)
    begun: list[int] = []
    first_waits = threading.Event()

    def square(number: int) -> int:
        if number == 0:
            assert first_waits.wait(20)
        if number == 1:
            first_waits.set()  # two are made at once, or this ends in a time-out
        return number**2

    found = []
    for square_of in in_order(square, counted(begun, 20)):
        found.append(square_of)
        assert len(begun) <= len(found) + 3
    assert found == [number**2 for number in range(20)]
    assert at_once([lambda: 1, lambda: 2, lambda: 3]) == [1, 2, 3]


def test_an_error_comes_at_its_place_and_nothing_is_begun_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)
    begun: list[int] = []

    def fail(number: int) -> int:
        if number == 3:
            raise ValueError("the third")
        return number

    found = in_order(fail, counted(begun, 100))
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(found)
    assert len(begun) < 10


def test_another_thread_makes_items_ahead_and_stops_when_nobody_takes_them() -> None:
    begun: list[int] = []
    items = ahead(counted(begun, 1000))
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert len(begun) <= threads.AHEAD + 2
    assert list(ahead(range(50))) == list(range(50))
    assert list(ahead([])) == []
