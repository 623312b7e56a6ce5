"""Decides what is worth retrying, and waits with jitter: the only place that does.

Whatever is not the coordinator's own answer is `Unreachable`, and is tried again for as long as it takes.
"""

import random
import threading
from collections.abc import Callable
from typing import TypeVar

import httpx
import stamina

from fedcybgd.agent.errors import CoordinatorSaid, ProxyBodyLimit, Unreachable

T = TypeVar("T")
RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
WAIT_MAX_S = 60.0
LONG_WAIT_S = 300.0
asleep = threading.Event()
"""Whether the main thread waits before it calls again."""


def is_retryable(error: Exception) -> bool:
    """No answer, or an answer that may be another one later. Everything else stays as it is, however often it is asked."""
    if isinstance(error, CoordinatorSaid):
        return error.status in RETRYABLE_STATUS
    return isinstance(error, (Unreachable, httpx.TransportError))


def patiently(call: Callable[[], T], timeout: float | None = None, waited: Callable[[Exception], None] | None = None) -> T:
    """Call until it works, waiting a growing and jittered time in between; without `timeout` for as long as it takes.

    An agent must outlast a coordinator that is away for a weekend. `asleep` is set between two calls: a signal handler may raise
    then, and so end the waiting.
    """

    def worth(error: Exception) -> bool | float:
        worth_it = is_retryable(error)
        if worth_it and waited is not None:
            waited(error)
        if worth_it:
            asleep.set()
        # A limit of a proxy stays until a person has raised it.
        return random.uniform(0.8, 1.2) * LONG_WAIT_S if isinstance(error, ProxyBodyLimit) else worth_it  # noqa: S311 - jitter

    for attempt in stamina.retry_context(on=worth, attempts=None, timeout=timeout, wait_initial=0.2, wait_max=WAIT_MAX_S, wait_jitter=1.0):
        asleep.clear()
        with attempt:
            return call()
    raise AssertionError("unreachable")
