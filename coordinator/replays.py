"""Each signature counts once, and only for a short while: what is sent again by somebody else does nothing."""

import math
import threading
import time
from collections.abc import Callable

from fedcybgd.coordinator.errors import Unauthorized
from fedcybgd.shared.contract.signatures import AHEAD_S, TIME, WINDOW_S, SignatureParameters


class SignatureStale(Unauthorized):
    """Says the coordinator's time, for whoever's clock goes wrong."""

    code = "signature_stale"

    def __init__(self, now: float) -> None:
        super().__init__("the time of the signature is not now, by the coordinator's clock; sign again with its time")
        self.headers = {TIME: str(math.ceil(now))}


class SignatureRepeated(Unauthorized):
    code = "signature_repeated"


class Replays:
    """Remembers what was signed lately, in this process; what was signed before it began is refused, so nothing else need be kept.

    Its clock runs on from the beginning, whoever sets the machine's: no time comes twice, unless it follows another. May be used from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, began: float | None = None) -> None:
        """`began`: in Unix time, by the clock that counts; None: now, by the machine's."""
        self._began, self._clock, self._zero = time.time() if began is None else began, clock, clock()
        self._lock = threading.Lock()
        self._now, self._before = set[tuple[str, str]](), set[tuple[str, str]]()
        self._turned = 0.0
        self._set_back, self._until = set[tuple[str, str]](), 0.0
        """what was heard before the clock was set back, until that time is over for good"""

    def follow(self, now: float) -> None:
        """The clock that counts, in Unix time: where it was set, what is signed is held against it from now on.

        Else another coordinator, which began later, would refuse what comes after a signature by the time here. What was signed before
        is refused, as after a restart.
        """
        with self._lock:
            if abs(now - (before := self.now())) <= AHEAD_S:
                return
            if now < before:
                self._set_back, self._until = self._set_back | self._before | self._now, max(self._until, before + AHEAD_S + WINDOW_S)
            self._now, self._before = set(), set()
            self._began, self._zero, self._turned = now, self._clock(), now

    def now(self) -> float:
        return self._began + self._clock() - self._zero

    def check(self, said: SignatureParameters) -> None:
        """Raises `SignatureStale` with the time here, and `SignatureRepeated`. Ask only for a signature that is good."""
        now = self.now()
        if not now - WINDOW_S <= said.created <= now + AHEAD_S or said.created <= self._began:
            raise SignatureStale(now)
        with self._lock:
            self._look(said)

    def admit(self, said: SignatureParameters) -> None:
        """As `check`, and it does not count another time."""
        self.check(said)
        now = self.now()
        with self._lock:
            # So long a signature is good at the most, from its first second to its last.
            if now - self._turned > WINDOW_S + AHEAD_S:
                self._before, self._now, self._turned = self._now, set(), now
                self._set_back = self._set_back if now < self._until else set()
            self._look(said)
            self._now.add((said.key_id, said.nonce))

    def _look(self, said: SignatureParameters) -> None:
        one = (said.key_id, said.nonce)
        if one in self._now or one in self._before or one in self._set_back:
            raise SignatureRepeated("this very request was made already; sign it again, with another nonce")
