"""Who is connected: when there are too many, those go first that have shown no key and ask for nothing."""

import ipaddress
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from uvicorn.protocols.http.flow_control import FlowControl

log = logging.getLogger("fedcoord")
HEAD_S = 10.0
"""Seconds in which the head of a request must be there, and before it the handshake of TLS."""
IDLE_S = 15.0
"""Seconds that a connection may stay idle on which no key was shown; the others may for as long as uvicorn lets them."""
BODY_S = 30.0
"""Seconds for a whole body from somebody without a key, and the longest silence within a body of anybody."""
LEAST_BYTES_PER_S = 512
"""A body that is slower over all is not being sent, but held open."""
UNREAD_S = 120.0
"""Seconds in which whoever asked must take some of the answer."""
MOST_STRANGERS = 4096
MOST_OF_ONE = 100
"""Connections of one key: an agent has about five."""
SAY_EVERY_S = 60.0


@lru_cache(4096)
def neighbourhood(address: str) -> str:
    """What counts as one place: an address, or the 2^64 addresses of IPv6 that one household is given."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped) if ip.ipv4_mapped else str(ipaddress.ip_network((ip, 64), strict=False))
    return address


@dataclass(eq=False, slots=True)
class Guest:
    """One connection, and what it is in the middle of."""

    address: str
    came_at: float
    close: Callable[[], None]
    """closes it at once, whatever it is doing"""
    room: "Connections | None" = None
    """which it came into"""
    flow: FlowControl | None = None
    closed: bool = False
    caller: str | None = None
    """whose good key it has shown; None: nobody's"""
    served: int = 0
    """requests whose head has come"""
    head_since: float | None = None
    body_since: float | None = None
    body_bytes: int = 0
    heard_at: float = 0.0
    answering: bool = False
    idle_since: float = 0.0
    unread_since: float | None = None

    def prove(self, caller: str) -> None:
        """It has shown the good key of `caller`."""
        if self.room is not None:
            self.room.proven(self, caller)

    def leave(self) -> None:
        """It has ended."""
        if self.room is not None:
            self.room.left(self)

    def overdue(self, now: float) -> bool:
        """Whether it has kept this coordinator waiting for longer than anybody honest does."""
        if self.unread_since is not None and now - self.unread_since > UNREAD_S:
            return True
        if self.body_since is not None:
            if self.flow is not None and self.flow.read_paused:  # the coordinator itself does not want to read on for now
                self.heard_at = now
                return False
            spent = now - self.body_since
            if self.caller is None and spent > BODY_S:
                return True
            return now - self.heard_at > BODY_S or (spent > 2 * BODY_S and self.body_bytes < LEAST_BYTES_PER_S * spent)
        if self.answering:
            return False
        if self.head_since is not None:
            return now - self.head_since > HEAD_S
        if not self.served:
            return now - self.came_at > HEAD_S
        return self.caller is None and now - self.idle_since > IDLE_S


class Connections:
    """Room for `most`. Nobody is kept out by somebody who only waits: the one who came first and asked for nothing makes room."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._strangers_at_most = min(max(1, most // 2), MOST_STRANGERS)
        self._strangers: defaultdict[str, OrderedDict[Guest, None]] = defaultdict(OrderedDict)
        self._known: defaultdict[str, OrderedDict[Guest, None]] = defaultdict(OrderedDict)
        self._number_of_strangers = 0
        self._number = 0
        self._shut = 0
        self._said_at = float("-inf")

    def __len__(self) -> int:
        return self._number

    def came(self, guest: Guest) -> None:
        """Let somebody in; somebody else may have to go."""
        self._strangers[guest.address][guest] = None
        self._number_of_strangers += 1
        self._number += 1
        if (self._number > self.most or self._number_of_strangers > self._strangers_at_most) and not self.make_room(sparing=guest):
            self._close(guest)

    def left(self, guest: Guest) -> None:
        place = self._strangers if guest.caller is None else self._known
        name = guest.address if guest.caller is None else guest.caller
        if guest in place[name]:
            del place[name][guest]
            self._number -= 1
            self._number_of_strangers -= guest.caller is None
        if not place[name]:
            del place[name]

    def proven(self, guest: Guest, caller: str) -> None:
        """It has shown the good key of `caller`, and is in nobody's way from now on but in that caller's own."""
        if guest.caller == caller:
            return
        place = self._strangers[guest.address] if guest.caller is None else self._known[guest.caller]
        if guest not in place:  # it has gone meanwhile
            return
        self.left(guest)
        guest.caller = caller
        self._known[caller][guest] = None
        self._number += 1
        if len(self._known[caller]) > MOST_OF_ONE and (victim := _first(self._known[caller], guest)) is not None:
            self._close(victim)

    def make_room(self, sparing: Guest | None = None) -> bool:
        """Close one stranger's connection, of the address that has the most of them; False where there is none."""
        for guests in sorted(self._strangers.values(), key=len, reverse=True)[:2]:
            if (victim := _first(guests, sparing)) is not None:
                self._close(victim)
                return True
        return False

    def close_overdue(self) -> None:
        now = time.monotonic()
        late = [g for place in (self._strangers, self._known) for guests in place.values() for g in guests if g.overdue(now)]
        for guest in late:
            self._close(guest)
        if self._shut and now - self._said_at >= SAY_EVERY_S:
            log.warning("%d connections were closed that were too slow, or one too many (%d are open)", self._shut, self._number)
            self._shut, self._said_at = 0, now

    def _close(self, guest: Guest) -> None:
        self._shut += 1
        self.left(guest)
        guest.closed = True
        guest.close()


def _first(guests: OrderedDict[Guest, None], sparing: Guest | None) -> Guest | None:
    """Who came first of those that wait for no answer; if all do, who came first."""
    others = [guest for guest in guests if guest is not sparing]
    return next((guest for guest in others if not guest.answering), others[0] if others else None)
