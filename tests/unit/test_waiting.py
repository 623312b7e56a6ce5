"""The waiting room asks whom there may be work for, one agent at a time, and nobody else."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from fedcybgd.coordinator.domain.opening import FIRST, Claimant, Opening
from fedcybgd.coordinator.wakes import waiting_room
from fedcybgd.coordinator.wakes.waiting_claim import WaitingClaim
from fedcybgd.coordinator.wakes.waiting_room import Stopping, WaitingRoom
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.versions import LABEL_SKEW, SPOKEN, Version


def opening(name: str = "work", meant_for: str | None = None, **more: object) -> Opening:
    known = {
        "run_id": "run_0",
        "run_name": "run",
        "excluded": frozenset(),
        "overdue": False,
        "open_to": None,
        "shared": False,
        "needs": FIRST,
    }
    return Opening(assignment_id=name, meant_for=meant_for, **{**known, **more})  # type: ignore[arg-type]


class Room(WaitingRoom):
    """A room whose openings the test writes down."""

    def __init__(self) -> None:
        self.open_now: list[Opening] = []
        self.reads = 0
        super().__init__(self._written)

    def _written(self) -> Sequence[Opening]:
        self.reads += 1
        return list(self.open_now)

    def come(self, name: str, runs: str = "*", speaks: Version = SPOKEN) -> WaitingClaim:
        return self.enter(Claimant(name, name, ClaimRequest(runs=[runs]), speaks))

    async def opens(self, *openings: Opening, offered: Sequence[str] = ()) -> None:
        self.open_now = list(openings)
        self.changed(offered)
        await self.refresh()

    def look_in_vain(self, place: WaitingClaim, awaited: Sequence[str] = ()) -> None:
        self.looks(place)
        self.declined(place, awaited)


def in_room(test: Callable[[Room], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in an event loop of its own, with an open room."""

    async def main() -> None:
        room = Room()
        room.open()
        await room.refresh()
        await asyncio.wait_for(test(room), 10)

    def run() -> None:
        asyncio.run(main())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


def asked(*places: WaitingClaim) -> list[str]:
    return [place.claimant.id for place in places if place.is_set()]


@in_room
async def test_only_the_agent_is_asked_that_work_is_meant_for(room: Room) -> None:
    ann, bob = room.come("ann"), room.come("bob")
    await room.opens(opening(meant_for="bob"))
    assert asked(ann, bob) == ["bob"]


@in_room
async def test_an_agent_of_an_earlier_protocol_is_not_asked_for_what_it_does_not_know(room: Room) -> None:
    old, new = room.come("old", speaks=Version(1, 2)), room.come("new", speaks=LABEL_SKEW)
    await room.opens(opening(meant_for="old", overdue=True, needs=LABEL_SKEW))
    assert asked(old, new) == ["new"]


@in_room
async def test_a_commit_in_another_thread_reaches_a_claim_that_waits(room: Room) -> None:
    place = room.come("ann")
    room.open_now = [opening()]
    threading.Thread(target=room.changed).start()
    assert await place.wait(5)
    assert not room.stale


@in_room
async def test_who_comes_after_a_commit_sees_what_it_opened(room: Room) -> None:
    room.open_now = [opening(meant_for="ann")]
    room.changed()
    assert room.stale, "at once: the answer to whoever committed must not be faster"
    await room.refresh()
    assert room.has_something_for(room.come("ann"), patient=True)
    assert not room.has_something_for(room.come("bob"), patient=False)


@in_room
async def test_whose_limits_have_changed_looks_again_for_what_it_did_not_get(room: Room) -> None:
    await room.opens(opening("asked"), opening("made"), opening("others", meant_for="bob"))
    ann = room.come("ann")
    room.look_in_vain(ann, awaited=["made"])
    room.leave(ann)
    ann = room.come("ann")
    assert not room.has_something_for(ann, patient=True)
    assert room.has_something_for(ann, patient=True, anew=True)
    cyd = room.come("cyd")
    await room.opens(opening("made"), opening("others", meant_for="bob"))
    assert not room.has_something_for(cyd, patient=True, anew=True), "it was asked for nothing, and what is being made is nobody's now"


@in_room
async def test_many_who_come_at_once_share_a_reading(room: Room) -> None:
    before = room.reads
    room.changed()
    await asyncio.gather(*(room.refresh() for _ in range(50)))
    assert room.reads - before <= 2


@in_room
async def test_one_opening_asks_one_agent_at_a_time_in_the_order_in_which_they_came(room: Room) -> None:
    places = [room.come(name) for name in ("ann", "bob", "eve")]
    await room.opens(opening())
    for name, place in zip(("ann", "bob", "eve"), places, strict=True):
        assert asked(*places) == [name]
        room.look_in_vain(place)
    assert asked(*places) == [], "nobody is asked twice"
    await room.opens(opening())
    assert asked(*places) == [], "nor when it is read once more"
    assert not room.has_something_for(room.come("ann"), patient=False), "nor when it comes again"
    assert room.has_something_for(room.come("dan"), patient=True), "who was not asked yet looks when it comes"


@in_room
async def test_as_many_are_asked_as_there_are_openings(room: Room) -> None:
    places = [room.come(name) for name in ("ann", "bob", "eve")]
    await room.opens(opening("one"), opening("two"))
    assert asked(*places) == ["ann", "bob"]
    room.looks(places[0])
    room.taken("one")
    room.leave(places[0])
    assert asked(*places[1:]) == ["bob"]
    await room.opens(opening("two"), opening("three"))
    assert asked(*places[1:]) == ["bob", "eve"]


@in_room
async def test_those_are_passed_over_who_could_not_have_it(room: Room) -> None:
    places = [room.come("out"), room.come("other", runs="another*"), room.come("not"), room.come("ann")]
    await room.opens(opening(open_to=frozenset({"other", "not", "ann"}), excluded=frozenset({"not"})))
    assert asked(*places) == ["ann"]


@in_room
async def test_what_an_absent_agent_does_not_fetch_goes_to_others_when_it_is_overdue(room: Room) -> None:
    ann = room.come("ann")
    await room.opens(opening(meant_for="nobody"))
    assert asked(ann) == []
    await room.opens(opening(meant_for="nobody", overdue=True))
    assert asked(ann) == ["ann"]
    room.look_in_vain(ann)
    for _ in range(5):
        await room.opens(opening(meant_for="nobody", overdue=True))
        assert asked(ann) == [], "not again each second"


@in_room
async def test_whoever_an_absent_agent_is_awaited_for_is_not_asked_when_it_has_no_part(room: Room) -> None:
    places = [room.come(f"agent-{number}") for number in range(50)]
    await room.opens(opening(meant_for="nobody", overdue=True, open_to=frozenset({"nobody"})))
    assert asked(*places) == []
    assert not any(room.has_something_for(place, patient=False) for place in places)


@in_room
async def test_nobody_is_asked_while_an_emulator_is_made_and_one_is_when_it_is_offered_again(room: Room) -> None:
    ann, bob = room.come("ann"), room.come("bob")
    await room.opens(opening())
    room.look_in_vain(ann, awaited=["work"])
    assert asked(ann, bob) == []
    assert not room.has_something_for(bob, patient=False)
    await room.opens(opening(), offered=["work"])
    assert len(asked(ann, bob)) == 1


@in_room
async def test_what_is_opened_while_an_agent_looks_asks_it_again(room: Room) -> None:
    ann = room.come("ann")
    await room.opens(opening())
    room.looks(ann)
    await room.opens(opening(), offered=["work"])  # its emulator is there now, and ann's look began before
    room.declined(ann)
    assert asked(ann) == ["ann"]


@in_room
async def test_another_thing_about_an_opening_asks_everybody_again(room: Room) -> None:
    ann = room.come("ann")
    await room.opens(opening(excluded=frozenset({"bob"})))
    room.look_in_vain(ann)
    await room.opens(replace(opening(), excluded=frozenset({"bob", "eve"})))
    assert asked(ann) == ["ann"]


@in_room
async def test_an_agent_that_is_invited_looks_again(room: Room) -> None:
    ann, bob = room.come("ann"), room.come("bob")
    await room.opens(opening(meant_for="eve", overdue=True))
    for place in (ann, bob):
        room.look_in_vain(place)
    room.changed(invited=["bob"])
    await room.refresh()
    assert asked(ann, bob) == ["bob"]
    assert room.has_something_for(bob, patient=True)


@in_room
async def test_a_part_of_a_wave_that_is_taken_makes_the_others_worth_another_look(room: Room) -> None:
    ann = room.come("ann")
    await room.opens(opening("one", shared=True), opening("two", shared=True), opening("else", run_id="run_1"))
    room.look_in_vain(ann)
    assert asked(ann) == []
    room.taken("one")
    assert asked(ann) == ["ann"]


@in_room
async def test_a_look_that_failed_does_not_send_the_next_one_into_the_same_failure(room: Room) -> None:
    ann, bob = room.come("ann"), room.come("bob")
    await room.opens(opening())
    room.looks(ann)
    room.leave(ann, failed=True)
    assert asked(bob) == []


def test_a_lost_signal_costs_seconds_not_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_room, "RETRY_FIRST_S", 0.05)

    @in_room
    async def test(room: Room) -> None:
        ann, bob = room.come("ann"), room.come("bob")
        await room.opens(opening())
        room.look_in_vain(ann, awaited=["work"])
        await asyncio.sleep(0.1)
        await room.opens(opening())
        assert len(asked(ann, bob)) == 1

    test()


@in_room
async def test_what_was_taken_while_it_was_read_is_not_open(room: Room) -> None:
    going, read = threading.Event(), room._read

    def slowly() -> Sequence[Opening]:
        found = read()
        going.wait(5)
        return found

    room._read = slowly
    room.open_now = [opening()]
    ann = room.come("ann")
    room.changed()
    reading = asyncio.create_task(room.refresh())
    await asyncio.sleep(0.05)
    room.taken("work")
    going.set()
    await reading
    assert asked(ann) == []


@in_room
async def test_a_reading_that_fails_is_made_good_for_by_the_next(room: Room) -> None:
    ann, read = room.come("ann"), room._read

    def away() -> Sequence[Opening]:
        raise OSError("away")

    await room.opens(opening())
    room.look_in_vain(ann, awaited=["work"])
    room._read = away
    room.changed(["work"])
    with pytest.raises(OSError, match="away"):
        await room.refresh()
    assert room.stale
    room._read = read
    await room.refresh()
    assert asked(ann) == ["ann"], "it was offered again, and that is not forgotten"


@in_room
async def test_a_second_claim_takes_the_place_over_and_lets_the_first_go(room: Room) -> None:
    first = room.come("ann")
    second = room.come("ann")
    assert first.is_set()
    assert not second.is_set()
    assert (room.holds(first), room.holds(second)) == (False, True)
    room.leave(first)
    assert room.holds(second), "the first one's leaving must not take the place of the second"
    assert len(room) == 1
    room.leave(second)
    assert len(room) == 0


@in_room
async def test_who_leaves_without_work_gives_it_to_the_next(room: Room) -> None:
    ann, bob = room.come("ann"), room.come("bob")
    await room.opens(opening())
    room.leave(ann)
    assert asked(bob) == ["bob"]


@in_room
async def test_for_another_run_many_are_let_go_in_groups_and_nobody_who_came_since(room: Room) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting_room, "TOGETHER", 2)
        patch.setattr(waiting_room, "EVERY_S", 0.05)
        places = [room.come(f"agent-{number}") for number in range(5)]
        before = room.offers
        room.offers_changed()
        await places[0].wait(5)
        since = room.come("since")
        assert (room.offers == before, asked(*places, since)) == (False, ["agent-0", "agent-1"])
        for place in places:
            assert await place.wait(5)
        assert asked(since) == []
        room.offers_changed()
        room.offers_changed()
        assert await since.wait(5)


@in_room
async def test_a_claim_waits_for_so_long_and_no_longer(room: Room) -> None:
    place = room.come("ann")
    assert not await place.wait(0.01)
    asyncio.get_running_loop().call_later(0.01, place.set)
    assert await place.wait(5)
    assert await place.wait(0), "it is set until it is cleared"
    place.clear()
    waits = asyncio.ensure_future(place.wait(5))
    await asyncio.sleep(0)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    place.set()
    assert await place.wait(0)


@in_room
async def test_closing_lets_everybody_go(room: Room) -> None:
    places = [room.come(name) for name in ("ann", "bob")]
    assert not room.closed
    room.close()
    assert room.closed
    assert all(p.is_set() for p in places)
    with pytest.raises(Stopping):
        room.come("eve")


@pytest.mark.parametrize("opened", [False, True])
def test_a_commit_before_the_loop_or_after_it_is_harmless(opened: bool) -> None:
    room = Room()
    if opened:

        async def main() -> None:
            room.open()

        asyncio.run(main())
    room.changed(["work"])
    room.let_go(["ann"])
