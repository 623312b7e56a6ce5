"""Garbage of the web process is found by the clock, not by count, and what is old is looked through too, seldom."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from fedcybgd.coordinator import collecting


class Knot:
    """Refers to itself: nothing but a look finds it."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(collecting, "EVERY_S", 0.01)
    monkeypatch.setattr(collecting, "SOME", 0)
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


async def found(old: bool) -> bool:
    """Whether a knot that nobody holds any more is gone soon; an old one has lived through a look."""
    task = asyncio.create_task(collecting.collect())
    try:
        await asyncio.sleep(0.02)
        knot = Knot()
        gone = weakref.ref(knot)
        if old:
            gc.collect(1)
        del knot
        for _ in range(50):
            await asyncio.sleep(0.02)
            if gone() is None:
                return True
        return False
    finally:
        task.cancel()


@pytest.mark.parametrize(("old", "all_every_s"), [(False, 600.0), (True, 0.0)], ids=["new", "old"])
def test_what_nobody_holds_is_found_without_a_count(monkeypatch: pytest.MonkeyPatch, old: bool, all_every_s: float) -> None:
    monkeypatch.setattr(collecting, "ALL_EVERY_S", all_every_s)
    assert asyncio.run(found(old))


def test_looks_through_everything_take_a_small_part_of_the_time() -> None:
    assert collecting.pause_s(0.05) == collecting.ALL_EVERY_S
    assert collecting.pause_s(0.8) == pytest.approx(800)
