"""Runs jobs on this machine, one lane beside another, so that agents never wait for an evaluation."""

import logging
import threading
from collections.abc import Callable, Collection, Iterable

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.outage import is_away
from fedcybgd.coordinator.domain.jobs import kinds
from fedcybgd.coordinator.domain.jobs.lease import RENEW_EVERY_S
from fedcybgd.coordinator.jobs.engine import NewEngine
from fedcybgd.coordinator.jobs.lane import LaneThread
from fedcybgd.coordinator.services.records import job_leases
from fedcybgd.coordinator.storage import StoreFull

log = logging.getLogger("fedcoord.jobs")


class LocalJobs:
    """A thread for each engine of a lane, and one thread that renews the leases of all."""

    def __init__(
        self,
        database: Database,
        new_engine: NewEngine,
        owner: str,
        full: Callable[[StoreFull], None],
        lanes: Iterable[kinds.Lane] = kinds.Lane,
        engines: int = 1,
    ) -> None:
        """`full` hears of a disk that is, and for which a job waits; what is in other `lanes` others do. `engines` of each lane work at once."""
        self._database = database
        self._lanes = [LaneThread(lane, database, new_engine, owner, full) for lane in lanes for _ in range(engines)]
        self._stopping = threading.Event()
        self._renewing = threading.Thread(target=self._renew_all, name="job-leases", daemon=True)

    def start(self) -> None:
        for lane in self._lanes:
            lane.start()
        self._renewing.start()

    def wake(self, lanes: Collection[str]) -> None:
        for lane in self._lanes:
            if lane.name in lanes:
                lane.wake()

    def stop(self) -> None:
        self._stopping.set()
        for lane in self._lanes:
            lane.stop()

    def _renew_all(self) -> None:
        while not self._stopping.wait(RENEW_EVERY_S):
            for lane in self._lanes:
                try:
                    self._renew(lane)
                except Exception as error:
                    if not is_away(error):  # of which the lanes speak
                        log.exception("the lease of a job was not renewed; it is tried again")

    def _renew(self, lane: LaneThread) -> None:
        hold, cpu_s = lane.progress()
        if hold is None:
            return
        lane.end_if_it_hangs(hold, cpu_s, RENEW_EVERY_S)
        with self._database.transaction() as session:
            held = job_leases.renew(session, hold, utcnow(), cpu_s)
        if not held and lane.progress()[0] == hold:
            log.warning("job %s is not ours any more; what comes of it here is not used", hold.job)
