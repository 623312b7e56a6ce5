"""The waiting room wakes whom there may be work for, from any thread, and nobody else."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from fedcybgd.coordinator.wakes.waiting_room import Stopping, WaitingRoom


def in_room(test: Callable[[WaitingRoom], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in an event loop of its own, with an open room."""

    async def main() -> None:
        room = WaitingRoom()
        room.open()
        await asyncio.wait_for(test(room), 10)

    def run() -> None:
        asyncio.run(main())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@in_room
async def test_only_the_agents_that_are_named_are_woken(room: WaitingRoom) -> None:
    ann, bob = room.enter("ann"), room.enter("bob")
    room.wake(["ann", "nobody"])
    await settle()
    assert ann.is_set()
    assert not bob.is_set()


@in_room
async def test_a_wake_from_another_thread_reaches_a_claim_that_waits(room: WaitingRoom) -> None:
    place = room.enter("ann")
    waiting = asyncio.create_task(place.wait())
    await settle()
    threading.Thread(target=room.wake, args=(["ann"],)).start()
    assert await asyncio.wait_for(waiting, 5)


@in_room
async def test_a_wake_between_entering_and_waiting_is_not_lost(room: WaitingRoom) -> None:
    place = room.enter("ann")
    room.wake(["ann"])
    await settle()
    await asyncio.wait_for(place.wait(), 1)


@in_room
async def test_wake_any_takes_those_that_waited_longest(room: WaitingRoom) -> None:
    places = [room.enter(name) for name in ("ann", "bob", "eve")]
    room.wake_any(2)
    await settle()
    assert [p.is_set() for p in places] == [True, True, False]


@in_room
async def test_who_was_woken_in_vain_stands_behind_the_others(room: WaitingRoom) -> None:
    ann, bob, eve = (room.enter(name) for name in ("ann", "bob", "eve"))
    room.wake_any(1)
    await settle()
    ann.clear()  # ann looked, could not take it, and waits again
    room.wake_any(1)
    await settle()
    assert [p.is_set() for p in (ann, bob, eve)] == [False, True, False]


@in_room
async def test_a_place_that_was_woken_already_does_not_use_up_a_wake(room: WaitingRoom) -> None:
    ann, bob = room.enter("ann"), room.enter("bob")
    room.wake_any(1)
    room.wake_any(1)
    await settle()
    assert ann.is_set()
    assert bob.is_set()


@in_room
async def test_more_places_than_agents_wake_all_of_them(room: WaitingRoom) -> None:
    places = [room.enter(name) for name in ("ann", "bob")]
    room.wake_any(99)
    await settle()
    assert all(p.is_set() for p in places)


@in_room
async def test_a_second_claim_takes_the_place_over_and_lets_the_first_go(room: WaitingRoom) -> None:
    first = room.enter("ann")
    second = room.enter("ann")
    assert first.is_set()
    assert not second.is_set()
    assert (room.holds("ann", first), room.holds("ann", second)) == (False, True)
    room.leave("ann", first)
    assert room.holds("ann", second), "the first one's leaving must not take the place of the second"
    assert len(room) == 1
    room.leave("ann", second)
    assert len(room) == 0


@in_room
async def test_a_second_claim_waits_as_the_newest(room: WaitingRoom) -> None:
    room.enter("ann")
    bob = room.enter("bob")
    ann = room.enter("ann")
    room.wake_any(1)
    await settle()
    assert (bob.is_set(), ann.is_set()) == (True, False)


@in_room
async def test_who_left_is_not_woken(room: WaitingRoom) -> None:
    ann = room.enter("ann")
    room.leave("ann", ann)
    bob = room.enter("bob")
    room.wake_any(1)
    await settle()
    assert (ann.is_set(), bob.is_set()) == (False, True)


@in_room
async def test_an_offer_goes_on_to_the_next_until_all_were_asked(room: WaitingRoom) -> None:
    places = {name: room.enter(name) for name in ("ann", "bob", "eve")}
    room.wake_any(1)
    for asked in ("ann", "bob", "eve"):
        await settle()
        assert [name for name, place in places.items() if place.is_set()] == [asked]
        places[asked].clear()  # it looked and could not take it
        room.pass_on(places[asked])
    assert not any(place.is_set() for place in places.values()), "nobody is asked twice"


@in_room
async def test_who_leaves_with_work_uses_one_offer_and_the_rest_go_on(room: WaitingRoom) -> None:
    ann = room.enter("ann")
    room.wake_any(1)
    await settle()
    ann.clear()
    room.wake_any(1)
    await settle()
    assert len(ann.offers) == 2
    bob, eve = room.enter("bob"), room.enter("eve")
    room.leave("ann", ann, served=True)
    assert (bob.is_set(), eve.is_set()) == (True, False)


@in_room
async def test_who_leaves_without_work_gives_its_offer_to_the_next(room: WaitingRoom) -> None:
    ann, bob = room.enter("ann"), room.enter("bob")
    room.wake_any(1)
    await settle()
    room.leave("ann", ann)
    assert bob.is_set()


@in_room
async def test_closing_lets_everybody_go(room: WaitingRoom) -> None:
    places = [room.enter(name) for name in ("ann", "bob")]
    assert not room.closed
    room.close()
    assert room.closed
    assert all(p.is_set() for p in places)
    with pytest.raises(Stopping):
        room.enter("eve")


@pytest.mark.parametrize("opened", [False, True])
def test_a_wake_before_the_loop_or_after_it_is_harmless(opened: bool) -> None:
    room = WaitingRoom()
    if opened:

        async def main() -> None:
            room.open()

        asyncio.run(main())
    room.wake(["ann"])
    room.wake_any(1)
