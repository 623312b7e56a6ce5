"""A flag holds up coroutines until it is set, as the event does in whose place it stands."""

import asyncio

from fedcybgd.coordinator.walls.flag import Flag


def test_all_who_wait_go_on_when_it_is_set_and_those_who_come_later_at_once() -> None:
    async def scene() -> None:
        flag = Flag()
        waiting = [asyncio.create_task(flag.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        flag.set()
        flag.clear()  # at once: those who waited go on all the same
        assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [True] * 3
        assert not flag.is_set()
        flag.set()
        assert await asyncio.wait_for(flag.wait(), 1)

    asyncio.run(scene())


def test_who_gives_up_waiting_is_forgotten_and_the_others_are_not() -> None:
    async def scene() -> None:
        flag = Flag()
        stays, goes = asyncio.create_task(flag.wait()), asyncio.create_task(flag.wait())
        await asyncio.sleep(0)
        goes.cancel()
        await asyncio.gather(goes, return_exceptions=True)
        assert goes.cancelled()
        flag.set()
        assert await asyncio.wait_for(stays, 1)
        assert flag._waiters is None

    asyncio.run(scene())
