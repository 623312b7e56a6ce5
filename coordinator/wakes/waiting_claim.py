"""Where one claim of the waiting room waits."""

import asyncio
from typing import cast

from fedcybgd.coordinator.domain.opening import Claimant


class WaitingClaim:
    """An event that one claim waits for, with a limit. There are thousands: asyncio's own would take 3 kB more each."""

    __slots__ = ("_set", "_waiter", "claimant", "let_go", "looks_at")

    def __init__(self, claimant: Claimant) -> None:
        self.claimant = claimant
        self.looks_at = 0
        """the reading of the openings after which it began to look in the database"""
        self.let_go = False
        """Its agent should ask anew: what this claim says of it is no longer true"""
        self._set, self._waiter = False, cast("asyncio.Future[None] | None", None)

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        if self._waiter is not None:
            _over(self._waiter)

    def clear(self) -> None:
        self._set = False

    async def wait(self, seconds: float) -> bool:
        """Whether it was set within so many seconds."""
        if not self._set:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            limit = loop.call_later(seconds, _over, self._waiter)
            try:
                await self._waiter
            finally:
                limit.cancel()
                self._waiter = None
        return self._set


def _over(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
