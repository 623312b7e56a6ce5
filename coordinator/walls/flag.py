"""A flag that coroutines of one event loop wait for."""

import asyncio
from typing import Literal


class Flag:
    """What uvicorn asks of its `asyncio.Event`s, of which every connection has two. Those of asyncio take 0.9 kB each, though nobody waits."""

    __slots__ = ("_set", "_waiters")

    def __init__(self, is_set: bool = False) -> None:
        self._set = is_set
        self._waiters: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        self._set = False

    async def wait(self) -> Literal[True]:
        if not self._set:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters = [*(self._waiters or ()), waiter]
            try:
                await waiter
            finally:
                self._waiters = [other for other in self._waiters or () if other is not waiter] or None
        return True
