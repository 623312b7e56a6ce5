"""The waiting room of long-polled claims: an agent is woken when there may be work for it, and only then."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable


class WaitingRoom:
    """Lives in the event loop; `wake` and `wake_any` may be called from any thread."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, asyncio.Event] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = False

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Let everybody go: the coordinator stops."""
        self.closed = True
        self._set(list(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, agent: str) -> asyncio.Event:
        """A place for a claim; must be entered before the first look for work, so that no wake is missed in between.

        A second claim of the same agent takes the place over, and the first one is let go.
        """
        if (old := self._places.pop(agent, None)) is not None:
            old.set()
        place = self._places[agent] = asyncio.Event()
        return place

    def leave(self, agent: str, place: asyncio.Event) -> None:
        if self._places.get(agent) is place:
            del self._places[agent]

    def holds(self, agent: str, place: asyncio.Event) -> bool:
        return self._places.get(agent) is place

    def wake(self, agents: Iterable[str]) -> None:
        self._call(self._set, list(agents))

    def wake_any(self, count: int) -> None:
        """Wake the `count` agents that have waited longest."""
        self._call(self._set_first, count)

    def _call(self, function: object, argument: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, argument)  # type: ignore[arg-type]

    def _set(self, agents: list[str]) -> None:
        for agent in agents:
            if agent in self._places:
                self._places[agent].set()

    def _set_first(self, count: int) -> None:
        for agent, place in list(self._places.items()):
            if count <= 0:
                return
            if not place.is_set():
                place.set()
                self._places.move_to_end(agent)  # the next call wakes another one, should this one not be able to
                count -= 1
