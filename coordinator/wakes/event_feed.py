"""The feed of events: whoever listens hears each as it happens, and after a gap those that it missed."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from anyio import to_thread

from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.shared.host.rarely import Rarely

EVERY_S = 0.5
"""Between two looks, while somebody listens"""
SETTLED_S = 5.0
"""Ids are given in another order than they are committed in: for so long after an event one before it may still come."""
TOGETHER = 500
LISTENERS, OF_ONE, BEHIND = 200, 40, 2000
"""Who may listen at the same time, how often one of them, and how many events one may be behind"""
log = logging.getLogger("fedcoord.feed")


class Numbered(Protocol):
    @property
    def id(self) -> int: ...


E = TypeVar("E", bound=Numbered)


class FeedFull(CoordinatorError):
    code = "feed_full"
    status = 503


class EventFeed(Generic[E]):
    """Lives in the event loop. `read` gives up to `TOGETHER` events after an id, the oldest first; `newest` the id of the last one."""

    def __init__(self, read: Callable[[int], Sequence[E]], newest: Callable[[], int]) -> None:
        self._read, self._newest = read, newest
        self._listeners: dict[asyncio.Queue[E | None], str] = {}
        """with who listens"""
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._listeners)

    def close(self) -> None:
        """Let everybody go: the coordinator stops."""
        self._closed = True
        for queue in self._listeners:
            self._end(queue)

    def check(self, who: str) -> None:
        """Raise `FeedFull` where nobody more can listen, or not he once more: nobody shuts the others out."""
        if self._closed or len(self._listeners) >= LISTENERS:
            raise FeedFull("too many listen to the events already, or the coordinator stops; ask again in a moment", retry_after_s=5)
        if sum(one == who for one in self._listeners.values()) >= OF_ONE:
            raise FeedFull(f"{who} listens to the events {OF_ONE} times already; close some of them", retry_after_s=5)

    async def follow(self, after: int | None, lasts_s: float, heard_s: float, who: str = "") -> AsyncIterator[E | int | None]:
        """The id after which is told; then events after that, and None each time that nothing has happened for `heard_s`. It ends after `lasts_s`."""
        queue: asyncio.Queue[E | None] = asyncio.Queue(BEHIND)
        self._listeners[queue] = who
        until = time.monotonic() + lasts_s
        try:
            now = await to_thread.run_sync(self._newest)
            if self._looking is None:
                self._looking = asyncio.create_task(self._look(now))
            last = now if after is None else after
            yield last
            told = set[int]()
            while found := await to_thread.run_sync(self._read, last):
                for event in found:
                    told.add(event.id)
                    yield event
                last = found[-1].id
            while not self._closed and (left := until - time.monotonic()) > 0:
                try:
                    happened = await asyncio.wait_for(queue.get(), min(heard_s, left))
                except TimeoutError:
                    yield None
                    continue
                if happened is None:
                    return
                if happened.id not in told and (after is None or happened.id > after):
                    yield happened
        finally:
            self._listeners.pop(queue, None)
            if not self._listeners and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _look(self, settled: int) -> None:
        """Once for all who listen, for what comes after an id."""
        stumbles, recent = Rarely(), dict[int, float]()
        while True:
            try:
                after = settled
                while found := await to_thread.run_sync(self._read, after):
                    for event in found:
                        if event.id not in recent:
                            recent[event.id] = time.monotonic()
                            self._tell(event)
                    after = found[-1].id
                old = [number for number, at in recent.items() if time.monotonic() - at > SETTLED_S]
                settled = max([settled, *old])
                recent = {number: at for number, at in recent.items() if number > settled}
            except Exception:
                if stumbles.is_due():
                    log.warning("events cannot be read; it is tried again", exc_info=True)
            await asyncio.sleep(EVERY_S)

    def _tell(self, event: E) -> None:
        for queue in self._listeners:
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._end(queue)  # it asks again from where it was

    @staticmethod
    def _end(queue: asyncio.Queue[E | None]) -> None:
        """Whatever it has not heard yet goes with it: the later ones alone would say that there were no others."""
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)


async def server_sent(
    feed: EventFeed[E], after: int | None, lasts_s: float, heard_s: float, written: Callable[[E], str], who: str = ""
) -> AsyncIterator[str]:
    """The lines of the stream that a browser's `EventSource` reads: first where it begins, and a comment where nothing has happened."""
    yield "retry: 1000\n\n"
    async for event in feed.follow(after, lasts_s, heard_s, who):
        if event is None:
            yield ":\n\n"
        else:
            yield f"id: {event}\n\n" if isinstance(event, int) else f"id: {event.id}\ndata: {written(event)}\n\n"
