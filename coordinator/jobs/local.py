"""Runs jobs on this machine, one lane beside another, so that agents never wait for an evaluation."""

from collections.abc import Collection

from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.domain.jobs import kinds
from fedcybgd.coordinator.jobs.engine import NewEngine
from fedcybgd.coordinator.jobs.lane import Lane
from fedcybgd.coordinator.services.records import jobs


class LocalJobs:
    """One thread and one engine a lane."""

    def __init__(self, database: Database, new_engine: NewEngine) -> None:
        self._database = database
        self._lanes = {str(lane): Lane(lane, database, new_engine) for lane in kinds.Lane}

    def start(self) -> None:
        with self._database.transaction() as session:
            jobs.requeue_interrupted(session)
        for lane in self._lanes.values():
            lane.start()

    def wake(self, lanes: Collection[str]) -> None:
        for lane in lanes:
            self._lanes[lane].wake()

    def stop(self) -> None:
        for lane in self._lanes.values():
            lane.stop()
