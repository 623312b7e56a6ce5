"""Whether this coordinator can serve: its database answers, and its storage takes bytes. A balancer asks so which of several it may send somebody to."""

import asyncio
import logging
import time
from collections.abc import Callable

from anyio import CapacityLimiter, move_on_after, to_thread

from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.outage import reason
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.storage import BlobStore, StoreFull
from fedcybgd.coordinator.wakes.waiting_room import WaitingRoom
from fedcybgd.shared.host.rarely import Rarely

log = logging.getLogger("fedcoord.ready")
NOBODYS = 64 * "0"
"""No blob: that it is not there is known by whoever reaches the store."""
KNOWN_FOR_S = 1.0
"""However many ask, it is looked once in so long."""
WITHIN_S = 4.0


class NotReady(CoordinatorError):
    """Somebody else should be asked for now."""

    code = "not_ready"
    status = 503


class _Enough(Exception):
    """Nothing is to be stored."""


class Probe:
    """Lives in the event loop. Its threads are nobody else's: requests that hang in a database do not keep it from saying so."""

    def __init__(self, database: Database, store: BlobStore, waiting: WaitingRoom) -> None:
        self._database, self._store, self._waiting = database, store, waiting
        self._looking, self._lane = asyncio.Lock(), CapacityLimiter(2)
        self._known: list[str] = []
        self._until = 0.0
        self._stumbles = Rarely()

    async def check(self) -> None:
        """Raises `NotReady`."""
        if self._waiting.closed:
            raise NotReady("the coordinator stops")
        async with self._looking:
            if time.monotonic() >= self._until:
                self._known = [
                    name
                    for name, is_there in (("database", self._database.ask), ("storage", self._written))
                    if not await self._try(is_there)
                ]
                self._until = time.monotonic() + KNOWN_FOR_S
        if self._known:
            raise NotReady(f"the coordinator does not reach its {' and its '.join(self._known)}", lacks=self._known)

    async def _try(self, look: Callable[[], None]) -> bool:
        try:
            with move_on_after(WITHIN_S):
                await to_thread.run_sync(look, limiter=self._lane, abandon_on_cancel=True)
                return True
            problem = f"no answer within {WITHIN_S:.0f} s"
        except Exception as error:
            problem = reason(error)
        if self._stumbles.is_due():
            log.warning("not ready: %s", problem)
        return False

    def _written(self) -> None:
        """A full disk is one for all of them, and downloads go on."""
        self._store.has(NOBODYS)
        try:
            with self._store.writer() as writer:
                writer.write(b"ready")
                raise _Enough
        except (_Enough, StoreFull):
            pass
