"""What is said to systemd: that a service is ready, and that it still does what it is there for (sd_notify(3), without a library)."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, MutableMapping

log = logging.getLogger("fedcybgd.watchdog")
SIGNS = 4
"""How many signs are given in the time after which systemd gives a service up"""


class Watchdog:
    """Says nothing where nobody listens. Threads may share one; no call waits or raises."""

    def __init__(self, address: str | None = None, within_s: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`address` of a datagram socket (@: an abstract one); `within_s`: seconds from sign to sign at the most, None: nobody counts them."""
        self._address, self._within_s, self._clock = address, within_s, clock
        self._lock = threading.Lock()
        self._ready, self._signed = False, -float("inf")

    @classmethod
    def of(cls, environment: MutableMapping[str, str] = os.environ) -> "Watchdog":
        """The one that systemd names. Taken out of the environment: what this process starts does not speak for it."""
        address, usec, pid = (environment.pop(name, None) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        counted = usec is not None and usec.isdigit() and pid in (None, str(os.getpid()))
        return cls(address, int(usec or 0) / 1e6 if counted else None)

    def ready(self) -> None:
        """What is served is served now; only the first word of it is said."""
        with self._lock:
            if self._ready:
                return
            self._ready = True
        self._say("READY=1")

    def alive(self) -> None:
        """To be called after whatever shows that the service works, as often as that happens; a sign is given now and then."""
        if self._within_s is None:
            return
        with self._lock:
            now = self._clock()
            if now - self._signed < self._within_s / SIGNS:
                return
            self._signed = now
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def _say(self, words: str) -> None:
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaking:
                speaking.setblocking(False)
                speaking.sendto(words.encode(), address)
        except OSError as error:
            log.debug("systemd was not told %s: %s", words, error)
