"""What the agent shows of itself: the status in its home, what has left this machine, and metrics."""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

from fedcybgd.agent import sent
from fedcybgd.agent.client import Client
from fedcybgd.agent.metrics import COUNTED, METRICS
from fedcybgd.agent.readiness import Verdict
from fedcybgd.agent.settings import Home
from fedcybgd.agent.shortage import write_status
from fedcybgd.agent.site.asking import SiteCache
from fedcybgd.shared.contract.assignments import LeasedAssignment, Progress
from fedcybgd.shared.contract.metrics import MetricEntry, text
from fedcybgd.shared.host.counters import Counters
from fedcybgd.shared.host.rarely import Rarely
from fedcybgd.shared.host.watchdog import Watchdog

log = logging.getLogger("fedagent")
ERRORS = 5
"""The last ones, that are told"""
SIGN_EVERY_S = 15.0
"""Between two signs in the home that it works"""


class Showing:
    def __init__(
        self,
        home: Home,
        client: Client,
        walls: Callable[[], str | None],
        without: Callable[[], Sequence[Verdict]],
        watchdog: Watchdog | None = None,
        site: SiteCache | None = None,
    ) -> None:
        self._home, self._client, self._walls, self._without, self._site = home, client, walls, without, site or SiteCache(client)
        self._watchdog, self._signed = watchdog or Watchdog(), -SIGN_EVERY_S
        self._errors: deque[dict[str, str]] = deque(maxlen=ERRORS)
        self._written, self._unwritten = 0.0, Rarely()
        self._visits, self._began, self._before = 0, 0.0, (0, 0, 0)
        self._counters, self._last = Counters(COUNTED), Progress(phase="fetching")
        self._training = False

    @property
    def error(self) -> str | None:
        """The last one."""
        return self._errors[-1]["error"] if self._errors else None

    def note(self, error: str, told: str = "") -> None:
        """An error, and what of it may leave this machine: the whole may quote a row."""
        self._errors.append({"error": error, "error_at": datetime.now(UTC).isoformat(), "told": told})

    def alive(self) -> None:
        """To be called when it was answered, and before it waits on purpose: there is nothing else that it is there for, also at its start."""
        self._watchdog.ready()
        self._watchdog.alive()
        if (now := time.monotonic()) - self._signed < SIGN_EVERY_S:
            return
        self._signed = now
        with contextlib.suppress(OSError):  # a disk that is full
            self._home.sign.touch()

    def state(self, state: str, next_s: float | None = None, **more: Any) -> None:
        """Write down what the agent is at. `next_s`: when the coordinator is spoken to next, at the latest."""
        if state == "stopped":
            self._watchdog.stopping()
        self._written = time.monotonic()
        now = datetime.now(UTC)
        status = {"state": state, "at": now.isoformat(), "pid": os.getpid(), "visits": self._visits, **more}
        if self._errors:
            status |= {"error": self._errors[-1]["error"], "error_at": self._errors[-1]["error_at"], "errors": list(self._errors)}
        if self._client.answered_at:
            status["contact_at"] = datetime.fromtimestamp(self._client.answered_at, UTC).isoformat()
        if next_s is not None:
            status["next_contact_at"] = (now + timedelta(seconds=next_s)).isoformat()
        if self._site.url is not None:
            shown = {"url": self._site.url, "asked": self._site.is_asked, "bytes": self._site.bytes_fetched, "trouble": self._site.trouble}
            status["site_cache"] = shown
        status["walls"] = self._walls()
        status["takes_no_work_of"] = [{"run": v.run, "reason": v.reason, "message": v.message} for v in self._without()]
        try:
            write_status(self._home.status, status)
        except OSError as error:
            if self._unwritten.is_due():
                log.warning("status not written: %s", error)

    def begins(self, fetched: int) -> None:
        """A visit begins; `fetched` is how much the cache has fetched so far."""
        self._began, self._before, self._training = time.monotonic(), self._moved(fetched), True
        self._last = Progress(phase="fetching")

    def progress(self, assignment: LeasedAssignment, progress: Progress, every_s: float) -> None:
        """How far a visit is; the coordinator hears it every `every_s` seconds."""
        if progress.phase == "training" and progress.step > self._last.step:
            self._counters.add("fedagent_steps_total", progress.step - self._last.step)
        self._last = progress
        if progress.phase != "training" or time.monotonic() - self._written > 1 or progress.step == progress.steps:
            self.state(
                "training", every_s, run=assignment.run_name, round=assignment.round, block=assignment.block, **progress.model_dump()
            )

    def ends(self, assignment: LeasedAssignment, fetched: int, delivered: bool) -> None:
        """A visit is over: what has crossed the wire is written down, whatever came of it."""
        self._training = False
        up, down, of_site = (after - before for after, before in zip(self._moved(fetched), self._before, strict=True))
        self._counters.add("fedagent_site_cache_bytes_total", of_site)
        for direction, amount in (("up", up), ("down", down)):
            self._counters.add("fedagent_bytes_total", amount, (direction,))
        if delivered:
            self._visits += 1
            self._counters.add("fedagent_visits_total")
            self._counters.add("fedagent_visit_seconds", time.monotonic() - self._began)
        try:
            sent.add(self._home.sent, self._client.url, assignment.run_name, int(delivered), up, down, of_site)
        except OSError as error:
            if self._unwritten.is_due():
                log.warning("what was sent is not written down: %s", error)

    def _moved(self, fetched: int) -> tuple[int, int, int]:
        return self._client.bytes_sent, fetched, self._site.bytes_fetched

    def failed(self, reason: str) -> None:
        """A visit was given back, for one of the reasons of the protocol."""
        self._counters.add("fedagent_failures_total", 1, (reason,))

    def metrics(self) -> str:
        """In the text format of Prometheus."""
        return text(METRICS, [*self._counters.entries(), *self._gauges()])

    def _gauges(self) -> Iterator[MetricEntry]:
        last = self._last
        if self._site.url is not None:
            yield MetricEntry("fedagent_site_cache_asked", self._site.is_asked)
        yield MetricEntry("fedagent_training", self._training)
        for name, value in (
            ("fedagent_tokens_per_second", last.tokens_per_s), ("fedagent_loss", last.loss), ("fedagent_peak_memory_bytes", last.peak_memory_bytes),
        ):  # fmt: skip
            if value is not None:
                yield MetricEntry(name, value)
        yield MetricEntry("fedagent_last_contact_timestamp_seconds", self._client.answered_at)
        at = datetime.fromisoformat(self._errors[-1]["error_at"]).timestamp() if self._errors else 0
        yield MetricEntry("fedagent_last_error_timestamp_seconds", at)
        yield MetricEntry("fedagent_info", 1, {"version": version("fedcybgd")})
