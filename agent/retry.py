"""Decides what is worth retrying, and waits with jitter: the only place that does.

Whatever is not the coordinator's own answer is `Unreachable`, and is tried again for as long as it takes.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import httpx

from fedcybgd.agent.errors import CoordinatorSaid, NotTheCoordinator, ProxyBodyLimit, SignatureRefused, Unreachable

T = TypeVar("T")
RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
WAIT_FIRST_S = 0.2
WAIT_MAX_S = 60.0
JITTER_S = 1.0
RESTARTS_S = 3.0
RESTARTS_TRIES = 13
"""A coordinator that does not answer at all may just be starting again: so many tries, about half a minute, are no further apart than that.
A thousand agents are 290 refused connections a second then; while it is down those cost nothing, and when it is up each asks once."""
LONG_WAIT_S = 300.0
BELIEVED_AFTER = 3
"""So often a proxy says that even the smallest piece is too large before it is believed: a backend that was away for a moment says it, too."""


def is_retryable(error: Exception) -> bool:
    """No answer, or an answer that may be another one later. Everything else stays as it is, however often it is asked."""
    if isinstance(error, CoordinatorSaid):
        return error.status in RETRYABLE_STATUS or isinstance(error, SignatureRefused)
    return isinstance(error, (Unreachable, httpx.TransportError))


def patiently(
    call: Callable[[], T],
    timeout: float | None = None,
    waited: Callable[[Exception], None] | None = None,
    pause: Callable[[float], None] = time.sleep,
    further: Callable[[], int] = int,
) -> T:
    """Call until it works; without `timeout` for as long as it takes: an agent must outlast a coordinator that is away for a weekend.

    `waited` hears of every failure that is tried again. `pause` waits between two calls, and may raise to end the waiting. `further` counts what has
    been got done: failures before it grew make no later wait longer.
    """
    began, failures, done = time.monotonic(), Counter[str](), further()
    while True:
        try:
            return call()
        except Exception as error:
            if not is_retryable(error):
                raise
            if waited is not None:
                waited(error)
            if timeout is not None and time.monotonic() - began >= timeout:
                raise
            if further() > done:
                failures, done = Counter(), further()
            kind = _kind(error)
            wait = _wait(error, failures[kind])
            failures[kind] += 1
        pause(wait)


def _kind(error: Exception) -> str:
    """What is waited for: a coordinator that is just up again, and asks for another signature, is not left alone for its absence."""
    if isinstance(error, ProxyBodyLimit):
        return "limit"
    return "said" if isinstance(error, CoordinatorSaid) else "unheard"


def _wait(error: Exception, failures: int) -> float:
    """Seconds to wait after a failure, when there were so many of its kind before: growing, and not the same for all agents."""
    if isinstance(error, ProxyBodyLimit) and failures >= BELIEVED_AFTER:  # it stays until a person has raised the limit
        return random.uniform(0.8, 1.2) * LONG_WAIT_S  # noqa: S311 - jitter
    growing = WAIT_FIRST_S * 2.0 ** min(failures, 30) if isinstance(error, CoordinatorSaid) else _unheard(failures)
    return max(min(WAIT_MAX_S, growing), _asked(error)) + random.uniform(0, JITTER_S)  # noqa: S311


def _unheard(failures: int) -> float:
    """Seconds where no coordinator has answered: few while it may be restarting, growing once it is away for longer."""
    if failures < RESTARTS_TRIES:
        return min(RESTARTS_S, WAIT_FIRST_S * 1.5**failures)
    return RESTARTS_S * 2.0 ** min(failures - RESTARTS_TRIES + 1, 30)


def _asked(error: Exception) -> float:
    """Seconds that the coordinator, or what answers in its place, asked to be left alone for; not for longer than its operator would understand."""
    if isinstance(error, NotTheCoordinator):  # which says so of all that it stands in front of
        return min(WAIT_MAX_S, error.retry_after_s)
    asked = error.detail.get("retry_after_s") if isinstance(error, CoordinatorSaid) else None
    return min(LONG_WAIT_S, asked) if isinstance(asked, int | float) and asked > 0 else 0.0
