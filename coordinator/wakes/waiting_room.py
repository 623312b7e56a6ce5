"""The waiting room of long-polled claims: an agent is woken when there may be work for it, and only then."""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from fedcybgd.coordinator.errors import CoordinatorError


class Stopping(CoordinatorError):
    """No claim begins to wait any more: the coordinator stops, and its next start answers."""

    code = "stopping"
    status = 503


class Place(asyncio.Event):
    """Where one claim waits."""

    def __init__(self) -> None:
        super().__init__()
        self.offers: list[set[str]] = []
        """Work that anybody may have and that this claim was woken for; each is the agents that were asked already."""
        self.let_go = False
        """Its agent should ask anew: what this claim says of it is no longer true"""


class WaitingRoom:
    """Lives in the event loop; `wake` and `wake_any` may be called from any thread."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, Place] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = False
        self.wakes = 0
        """Counts up at every wake: whoever was not in the room yet sees that there was one."""
        self.offers = secrets.token_hex(4)
        """Another value after each change of the runs that are offered, and after a restart"""

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Let everybody go: the coordinator stops."""
        self.closed = True
        self._set(list(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, agent: str) -> Place:
        """A place for a claim; `wakes` must be read before the first look for work, so that none is missed in between.

        A second claim of the same agent takes the place over, and the first one is let go.
        Raises `Stopping` once the room is closed.
        """
        if self.closed:
            raise Stopping("the coordinator stops; ask again in a moment")
        if (old := self._places.pop(agent, None)) is not None:
            old.set()
        place = self._places[agent] = Place()
        return place

    def leave(self, agent: str, place: Place, served: bool = False) -> None:
        """Give the place up; offers that were not used go to the next. `served`: it leaves with work."""
        if self._places.get(agent) is place:
            del self._places[agent]
        if served:
            del place.offers[:1]
        self.pass_on(place)

    def pass_on(self, place: Place) -> None:
        """What this place was woken for is nothing for it: ask the agent that has waited longest and was not asked yet."""
        offers, place.offers = place.offers, []
        for asked in offers:
            self._offer(asked)

    def holds(self, agent: str, place: Place) -> bool:
        return self._places.get(agent) is place

    def wake(self, agents: Iterable[str]) -> None:
        self._call(self._set, list(agents))

    def wake_any(self, count: int) -> None:
        """Wake the `count` agents that have waited longest."""
        self._call(self._set_first, count)

    def offers_changed(self) -> None:
        """Let everybody go: there is another run."""
        self._call(self._new_offers, None)

    def _new_offers(self, _: None) -> None:
        self.offers = secrets.token_hex(4)
        self._set(list(self._places))

    def let_go(self, agents: Iterable[str]) -> None:
        """Let the claims of these agents go."""
        self._call(self._let_go, list(agents))

    def _let_go(self, agents: list[str]) -> None:
        for agent in agents:
            if (place := self._places.get(agent)) is not None:
                place.let_go = True
                place.set()

    def _call(self, function: Callable[[Any], None], argument: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._count, function, argument)

    def _count(self, function: Callable[[Any], None], argument: object) -> None:
        self.wakes += 1
        function(argument)

    def _set(self, agents: list[str]) -> None:
        for agent in agents:
            if agent in self._places:
                self._places[agent].set()

    def _set_first(self, count: int) -> None:
        for _ in range(count):
            self._offer(set())

    def _offer(self, asked: set[str]) -> None:
        for agent, place in self._places.items():
            if agent not in asked and not place.is_set():
                asked.add(agent)
                place.offers.append(asked)
                place.set()
                self._places.move_to_end(agent)  # the next call wakes another one, should this one not be able to
                return
