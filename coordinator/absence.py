"""Notices that nothing could be written for a while, and makes good for it before anything else is written."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.domain.absence import Moment, lost_between
from fedcybgd.coordinator.services.records import replicas
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.upkeep import leases

ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux has a clock that goes on while the machine sleeps; elsewhere the sleep looks like a clock that was set, which is as good."""


def read_clocks() -> Moment:
    return Moment(utcnow(), time.clock_gettime(ELAPSED))


class Absence:
    """Watches a database: each commit shows that the coordinator runs, and each transaction first looks whether it did.

    The sweeper commits once in `expected`, so a longer gap is an absence: a machine that slept, a process that was stopped, a database
    that was away. Nobody could renew a lease meanwhile, unless another coordinator was there: then there is nothing to make good.
    """

    def __init__(self, database: Database, expected: timedelta, home: str, clocks: Callable[[], Moment] = read_clocks) -> None:
        """`home`: the id of that of this process; whoever lives in another is somebody else."""
        self._database, self._expected, self._home, self._clocks = database, expected, home, clocks
        self._lock, self._mending = threading.RLock(), False
        self._last = clocks()
        self._noticed_at = float("-inf")
        self.times = 0
        """Counts the absences: whoever compares times that he noted before one with those after it sees that there was one."""

    def begin(self, session: Session) -> None:
        """Make good for the time before the start, unless another coordinator was there. Nobody else starts meanwhile: they would take each other for one."""
        now = self._clocks().wall
        if not replicas.is_another_alive(session, self._home, now):
            leases.after_absence(session, now, timedelta())
            leases.excuse_agents(session, now)

    def watch(self) -> None:
        """From now on."""
        self._last = self._clocks()
        self._database.before_transaction, self._database.after_transaction = self._look, self._committed

    def steady_s(self) -> float:
        """Seconds since the last absence: what is older by the clock may be younger in truth."""
        return self._clocks().elapsed - self._noticed_at

    def _committed(self) -> None:
        with self._lock:
            now = self._clocks()
            # A transaction that was under way when the process was stopped ends after it: the next one looks, and sees the gap.
            if not self._mending and lost_between(self._last, now, self._expected) is None:
                self._last = now

    def _look(self) -> None:
        with self._lock:  # whoever comes meanwhile waits until it is made good
            now = self._clocks()
            if self._mending or lost_between(self._last, now, self._expected) is None:
                return
            self._mending = True
            self.times += 1
            try:
                self._database.agree_on_time()  # where it is this machine's clock alone that was set
                now = self._clocks()
                if (lost := lost_between(self._last, now, self._expected)) is None:
                    self._last, self._noticed_at = now, now.elapsed
                    return
                with self._database.transaction() as session:
                    if (missed := self._missed_by_all(session, now, lost)) is not None:
                        self._mend(session, now, missed)
                self._last, self._noticed_at = self._clocks(), now.elapsed
            finally:
                self._mending = False

    def _missed_by_all(self, session: Session, now: Moment, lost: timedelta) -> timedelta | None:
        """What of the time that this process lost no other coordinator was there for; None: one was."""
        seen = replicas.others_seen_at(session, self._home, now.wall)
        if seen is None or seen <= self._last.wall or lost < timedelta():
            return lost
        return now.wall - seen if now.wall - seen > replicas.ALIVE else None

    def _mend(self, session: Session, now: Moment, lost: timedelta) -> None:
        extended = leases.after_absence(session, now.wall, lost)
        text = f"for {lost.total_seconds():.0f} s" if lost > timedelta() else f"(its clock was set back by {-lost.total_seconds():.0f} s)"
        message = f"the coordinator could not work {text}: it slept, was stopped, lost its database, or its clock was set; leases that hold on: {extended}"
        record(session, now.wall, "warning", "coordinator_absent", message)
