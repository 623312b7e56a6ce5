"""Who falls behind is let go, and has heard of everything up to where it was: it asks again from there, and misses nothing."""

import asyncio
from dataclasses import dataclass

import pytest

from fedcybgd.coordinator.wakes import event_feed
from fedcybgd.coordinator.wakes.event_feed import EventFeed


@dataclass(frozen=True)
class Numbered:
    id: int


def feed(there: list[int]) -> EventFeed[Numbered]:
    return EventFeed(lambda after: [Numbered(n) for n in there if n > after], lambda: there[-1])


async def heard(of: EventFeed[Numbered], after: int, there: list[int], more: int, stops: bool) -> list[int]:
    """The ids that somebody hears who is slow: meanwhile so many more happen, and perhaps the coordinator stops with some of them in hand."""
    ids: list[int] = []
    async for event in of.follow(after, lasts_s=5, heard_s=1):
        if isinstance(event, int):
            continue
        if event is None:
            break
        ids.append(event.id)
        if len(ids) == 1:
            there.extend(range(there[-1] + 1, there[-1] + 1 + more))
            await asyncio.sleep(0.2)
            if stops:
                of.close()
    return ids


@pytest.mark.parametrize(("more", "stops"), [(3, False), (6, False), (7, False), (20, False), (3, True)])
def test_who_is_let_go_has_a_gap_only_at_the_end(monkeypatch: pytest.MonkeyPatch, more: int, stops: bool) -> None:
    monkeypatch.setattr(event_feed, "EVERY_S", 0.01)
    monkeypatch.setattr(event_feed, "BEHIND", 5)
    there = [1, 2]

    async def listen() -> list[int]:
        of = feed(there)
        first = asyncio.ensure_future(heard(of, 2, there, more, stops))
        await asyncio.sleep(0.05)
        there.append(3)
        return await first

    ids = asyncio.run(listen())
    assert ids == list(range(3, 3 + len(ids))), "what follows a gap would be taken for all there was"
    assert asyncio.run(catch_up(ids[-1], there)) == list(range(ids[-1] + 1, 4 + more))


async def catch_up(after: int, there: list[int]) -> list[int]:
    """What the next stream tells, which goes on there."""
    return [event.id async for event in feed(there).follow(after, lasts_s=0.2, heard_s=0.1) if isinstance(event, Numbered)]
