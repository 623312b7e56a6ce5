"""The waiting room of long-polled claims: an agent is asked to look for work when there is some that it may have, and only then."""

import asyncio
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from fedcybgd.coordinator.domain.opening import Claimant, Opening
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.wakes.waiting_claim import WaitingClaim

log = logging.getLogger("fedcoord.waiting")
RETRY_FIRST_S, RETRY_LONGEST_S = 5.0, 60.0
"""How soon somebody is asked once more for work that nobody took who was asked: a net under the signals, which come at once."""
TOGETHER, EVERY_S = 100, 0.5
"""So many claims are let go at once for another run, and as many so much later: ten thousand would be in each other's way for minutes, and in that of those who train."""


class Stopping(CoordinatorError):
    """No claim begins to wait any more: the coordinator stops, and its next start answers."""

    code = "stopping"
    status = 503


class AskedOpening:
    """An opening, and who was asked for it: one agent at a time, until all that might have it were."""

    def __init__(self, opening: Opening, reading: int, retry_at: float) -> None:
        self.opening, self.reading = opening, reading
        self.asked: set[str] = set()
        """ids of agents that looked, and did not get it"""
        self.asking: WaitingClaim | None = None
        self.resting = False
        """nobody can have it before something happens: its emulator is being made"""
        self.retry_at, self.retry_s = retry_at, RETRY_FIRST_S


class WaitingRoom:
    """Lives in the event loop; `changed`, `let_go`, `offers_changed` and `read_anew` may be called from any thread.

    What is open is read from the database after each commit that says so, once for all who wait. A claim that nothing is open for
    asks no database.
    """

    def __init__(self, read: Callable[[], Sequence[Opening]]) -> None:
        self._read = read
        self._places: OrderedDict[str, WaitingClaim] = OrderedDict()
        self._standing: dict[str, AskedOpening] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading: asyncio.Lock | None = None
        self._refresh: asyncio.Future[None] | None = None
        self._changes, self._seen, self._readings = 1, 0, 0
        self._news = threading.Lock()
        self._offered: set[str] = set()
        self._invited: set[str] = set()
        self._taken: set[str] = set()
        self._anew = False
        self.closed = False
        self.offers = secrets.token_hex(4)
        """Another value after each change of the runs that are offered, and after a restart"""

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reading = asyncio.Lock()

    def close(self) -> None:
        """Let everybody go: the coordinator stops."""
        self.closed = True
        self._set_all()

    def __len__(self) -> int:
        return len(self._places)

    def claimants(self) -> list[Claimant]:
        """Who waits, those that wait longest first; may be called from any thread."""
        return [place.claimant for place in list(self._places.values())]

    # ---- the claims

    def enter(self, claimant: Claimant) -> WaitingClaim:
        """A place for a claim. A second claim of the same agent takes the place over, and the first one is let go.

        Raises `Stopping` once the room is closed.
        """
        if self.closed:
            raise Stopping("the coordinator stops; ask again in a moment")
        if (old := self._places.pop(claimant.id, None)) is not None:
            old.set()
        place = self._places[claimant.id] = WaitingClaim(claimant)
        return place

    def leave(self, place: WaitingClaim, failed: bool = False) -> None:
        """Give the place up; what it was asked for, and has not taken, goes to the next. `failed`: its look came to no end."""
        if self.holds(place):
            del self._places[place.claimant.id]
        for standing in self._standing.values():
            if standing.asking is place:
                standing.asking, standing.resting = None, failed
                self._ask(standing)

    def holds(self, place: WaitingClaim) -> bool:
        return self._places.get(place.claimant.id) is place

    def has_something_for(self, place: WaitingClaim, patient: bool, anew: bool = False) -> bool:
        """Whether a look in the database may be worth it.

        `patient`: it can wait until another has looked that is asked already. `anew`: what it was asked before it may take now.
        """
        for standing in self._standing.values():
            opening = standing.opening
            was_asked = place.claimant.id in standing.asked
            if ((standing.resting or was_asked) and not (was_asked and anew)) or not opening.is_for(place.claimant):
                continue
            if standing.asking in (None, place):
                standing.asking = place
            elif patient and opening.meant_for != place.claimant.id:
                continue
            return True
        return False

    def looks(self, place: WaitingClaim) -> None:
        """It begins to look: what is opened from now on it may not see."""
        place.clear()
        place.looks_at = self._readings

    def declined(self, place: WaitingClaim, awaited: Collection[str] = ()) -> None:
        """It has looked and got nothing: the agent is asked that has waited longest of the others; for what is `awaited`, nobody."""
        for standing in self._standing.values():
            if standing.reading > place.looks_at:
                continue  # opened meanwhile
            if standing.opening.is_for(place.claimant):
                standing.asked.add(place.claimant.id)
                standing.resting = standing.resting or standing.opening.assignment_id in awaited
            if standing.asking is place:
                standing.asking = None
                self._ask(standing)

    def taken(self, assignment_id: str) -> None:
        """Somebody holds it now."""
        self._taken.add(assignment_id)
        gone = self._standing.pop(assignment_id, None)
        if gone is None or not gone.opening.shared:
            return
        for standing in self._standing.values():
            if standing.opening.run_id == gone.opening.run_id and standing.asked:
                standing.asked = set()
                self._ask(standing)

    # ---- what is open

    @property
    def stale(self) -> bool:
        """Whether something was committed that the room has not read yet."""
        return self._seen != self._changes

    def changed(self, offered: Iterable[str] = (), invited: Iterable[str] = ()) -> None:
        """Something else may be open. `offered`: ask for these assignments anew; `invited`: ask these agents anew."""
        with self._news:
            self._offered.update(offered)
            self._invited.update(invited)
            self._changes += 1
        self._call(self._look_soon)

    def read_anew(self) -> None:
        """News may have been missed: let everybody go, and remember of nobody what he was asked."""
        with self._news:
            self._anew = True
        self.changed()

    async def refresh(self) -> None:
        """Read what is open; whoever comes while it is read shares the next reading."""
        wanted = self._changes
        assert self._reading is not None
        async with self._reading:
            if self._seen >= wanted:
                return
            with self._news:
                began, offered, invited, anew = self._changes, self._offered, self._invited, self._anew
                self._offered, self._invited, self._anew = set(), set(), False
            self._taken = set()
            try:
                found = await asyncio.to_thread(self._read)
            except BaseException:
                with self._news:
                    self._offered |= offered
                    self._invited |= invited
                    self._anew = self._anew or anew
                raise
            self._seen = began
            if anew:
                self._standing.clear()
                self._new_offers()
            self._stand([opening for opening in found if opening.assignment_id not in self._taken], offered)
            self._invite(invited)

    def _stand(self, openings: Sequence[Opening], offered: Collection[str]) -> None:
        self._readings += 1
        now = asyncio.get_running_loop().time()
        before, self._standing = self._standing, {}
        for opening in openings:
            old = before.get(opening.assignment_id)
            if old is not None and old.opening == opening and opening.assignment_id not in offered:
                self._standing[opening.assignment_id] = old
                if old.asking is None and now >= old.retry_at:
                    self._retry(old, now)
                continue
            self._standing[opening.assignment_id] = AskedOpening(opening, self._readings, now + RETRY_FIRST_S)
        for standing in self._standing.values():
            self._ask(standing)

    def _ask(self, standing: AskedOpening) -> None:
        """Ask the agent that has waited longest of those that might have it and were not asked yet."""
        if standing.asking is not None or standing.resting:
            return
        for place in self._candidates(standing.opening):
            if place.claimant.id not in standing.asked and not place.is_set() and standing.opening.is_for(place.claimant):
                self._hand(standing, place)
                return

    def _retry(self, standing: AskedOpening, now: float) -> None:
        """Ask one agent once more, whoever was asked already."""
        standing.retry_s = min(2 * standing.retry_s, RETRY_LONGEST_S)
        standing.retry_at = now + standing.retry_s
        for place in self._candidates(standing.opening):
            if not place.is_set() and standing.opening.is_for(place.claimant):
                standing.resting = False
                self._hand(standing, place)
                return

    def _hand(self, standing: AskedOpening, place: WaitingClaim) -> None:
        standing.asking = place
        place.set()
        self._places.move_to_end(place.claimant.id)  # the next one wakes another, should this one not be able to

    def _candidates(self, opening: Opening) -> Iterator[WaitingClaim]:
        if opening.meant_for is not None and not opening.overdue:
            place = self._places.get(opening.meant_for)
            return iter(()) if place is None else iter((place,))
        return iter(self._places.values())

    def _invite(self, agents: Collection[str]) -> None:
        for agent in agents:
            for standing in self._standing.values():
                standing.asked.discard(agent)
            if (place := self._places.get(agent)) is not None:
                place.set()

    def _look_soon(self) -> None:
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        try:
            while self.stale:
                await self.refresh()
        except Exception as error:
            log.warning("what is open could not be read (%s); it is tried again", error)

    # ---- letting claims go

    def offers_changed(self) -> None:
        """Let everybody go: there is another run. They go in groups, for each of them comes back with questions."""
        self._call(self._new_offers)

    def _new_offers(self) -> None:
        self.offers = secrets.token_hex(4)
        self._let_some_go(self.offers, list(self._places.values()))

    def _let_some_go(self, offers: str, left: list[WaitingClaim]) -> None:
        for place in left[:TOGETHER]:
            place.set()
        if (later := left[TOGETHER:]) and offers == self.offers:  # else those who are left are let go for a newer one
            asyncio.get_running_loop().call_later(EVERY_S, self._let_some_go, offers, later)

    def wake(self, agents: Iterable[str]) -> None:
        """Have these agents look: they hold something, and may have asked another coordinator for it."""
        self._call(self._wake, list(agents))

    def _wake(self, agents: list[str]) -> None:
        for agent in agents:
            if (place := self._places.get(agent)) is not None:
                place.set()

    def let_go(self, agents: Iterable[str]) -> None:
        """Let the claims of these agents go."""
        self._call(self._let_go, list(agents))

    def _let_go(self, agents: list[str]) -> None:
        for agent in agents:
            if (place := self._places.get(agent)) is not None:
                place.let_go = True
                place.set()

    def _set_all(self) -> None:
        for place in self._places.values():
            place.set()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)
