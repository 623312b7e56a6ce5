"""Renews a lease from a thread of the daemon: training in its own process cannot starve it."""

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context

from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import CoordinatorSaid
from fedcybgd.shared.contract.assignments import LeasedAssignment, Progress, RenewRequest

log = logging.getLogger("fedagent.heartbeat")
PROGRESS_EVERY_S = 2.0
SHORTEST_S = 0.1
LOST = frozenset({"stale_attempt", "lease_lost", "not_found", "unauthorized", "agent_revoked", "agent_key_expired"})
"""What the coordinator says where the lease is gone; any other refusal may be over at the next renewal."""
FIRST_S = 0.5
"""Whoever watches sees soon that a visit has begun."""


class Heartbeat:
    """Use as a context manager around one visit; `lost` is set when its lease is gone or not wanted any more.

    `alive` hears of each renewal that was tried, as long as the visit is wanted: while nobody answers, training goes on all the same.
    An answer may come long after the visit has ended: then nothing is done any more, whatever it says.
    """

    def __init__(
        self,
        client: Client,
        assignment: LeasedAssignment,
        progress: Callable[[], Progress | None],
        on_lost: Callable[[], None],
        alive: Callable[[], None],
    ) -> None:
        self._client, self._assignment = client, assignment
        self._progress, self._on_lost, self._alive = progress, on_lost, alive
        self._stop = threading.Event()
        self._ending = threading.Lock()
        self.lost = threading.Event()
        self._thread = threading.Thread(target=copy_context().run, args=(self._loop,), name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._ending:  # not waited for: an answer that hangs must not hold up the next visit
            self._stop.set()

    def _loop(self) -> None:
        lease = self._assignment.lease_seconds
        every = min(max(lease / 3, SHORTEST_S), PROGRESS_EVERY_S)
        renewed = time.monotonic()
        wait = min(every, FIRST_S)
        while not self._stop.wait(wait):
            wait = every
            request = RenewRequest(attempt=self._assignment.attempt, progress=self._progress())
            try:
                answer = self._client.renew(self._assignment.assignment_id, request)
                renewed = time.monotonic()
                if not answer.go_on:
                    self._lose(answer.reason or "the run has ended")
                    return
            except CoordinatorSaid as error:
                if error.code in LOST:
                    self._lose(error.message)
                    return
                log.warning("lease not renewed for %.0f s: %s", time.monotonic() - renewed, error)
            except Exception as error:
                # No answer: go on training. The coordinator gives everybody a fresh lease when it comes back.
                log.warning("lease not renewed for %.0f s: %s", time.monotonic() - renewed, error)
            self._alive()

    def _lose(self, why: str) -> None:
        with self._ending:
            if self._stop.is_set():
                return
            log.warning("stopping %s: %s", self._assignment.block, why)
            self.lost.set()
            self._on_lost()
