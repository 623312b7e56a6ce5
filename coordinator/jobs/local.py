"""Runs jobs in worker processes on this machine, one a lane, so that agents never wait for an evaluation."""

import logging
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

from coordinator.db.base import Database
from coordinator.domain.job import LANES
from coordinator.errors import CoordinatorError
from coordinator.services import jobs, outcomes
from shared import interrupt
from shared.errors import FedError

log = logging.getLogger("fedcoord.jobs")


class LocalJobs:
    """One thread and one warm process per lane; jobs wait in the database and survive both."""

    def __init__(self, database: Database, blobs: Path, threads: int) -> None:
        self._database = database
        self._lanes = {lane: Lane(lane, database, blobs, threads) for lane in sorted(set(LANES.values()))}

    def start(self) -> None:
        with self._database.transaction() as session:
            jobs.requeue_interrupted(session)
        for lane in self._lanes.values():
            lane.start()

    def wake(self, lanes: set[str]) -> None:
        for lane in lanes:
            self._lanes[lane].wake()

    def stop(self) -> None:
        for lane in self._lanes.values():
            lane.stop()


class Lane:
    def __init__(self, name: str, database: Database, blobs: Path, threads: int) -> None:
        self._name, self._database, self._blobs, self._threads = name, database, blobs, threads
        self._work = threading.Event()
        self._stopped = False
        self._pool = self._new_pool()
        self._thread = threading.Thread(target=self._loop, name=f"lane-{name}", daemon=True)

    def start(self) -> None:
        self._work.set()
        self._thread.start()

    def wake(self) -> None:
        self._work.set()

    def stop(self) -> None:
        """Let go at once: a job that is under way is done again at the next start."""
        self._stopped = True
        self._work.set()
        for process in list(getattr(self._pool, "_processes", {}).values()):
            process.terminate()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        # Spawned, not forked: the web process has threads. Warmed up now, so that the first delta does not wait for torch.
        pool = ProcessPoolExecutor(1, get_context("spawn"), _leave_with_parent)
        with interrupt.withheld():
            pool.submit(_warm_up, self._threads)
        return pool

    def _loop(self) -> None:
        while True:
            self._work.wait()
            self._work.clear()
            while not self._stopped and self._one():
                pass
            if self._stopped:
                return

    def _one(self) -> bool:
        """Take and do one job; whether there was one."""
        try:
            with self._database.transaction() as session:
                job = jobs.take(session, self._name)
                if job is None:
                    return False
                job_id, kind, payload = job.id, job.kind, job.payload
        except Exception:
            log.exception("lane %s cannot read the queue", self._name)
            self._retry_later()
            return False
        try:
            result = self._pool.submit(_run, kind, payload, str(self._blobs)).result()
            with self._database.transaction() as session:
                outcomes.complete(session, job_id, result)
        except Exception as error:
            self._failed(job_id, kind, error)
        return True

    def _failed(self, job_id: str, kind: str, error: Exception) -> None:
        if self._stopped:
            return
        died = isinstance(error, BrokenProcessPool)
        if died:
            self._pool = self._new_pool()
        if isinstance(error, FedError):
            code, message = error.code, error.message
        else:
            code, message = "worker_died" if died else "engine_failed", f"{type(error).__name__}: {error}"
        expected = isinstance(error, CoordinatorError | FedError)
        log.error("job %s (%s) failed: %s", job_id, kind, message, exc_info=None if expected or died else error)
        try:
            with self._database.transaction() as session:
                outcomes.fail(session, job_id, code, message[:4000], try_again=died)
        except Exception:
            log.exception("job %s could not be recorded as failed; it waits for the next start", job_id)

    def _retry_later(self) -> None:
        timer = threading.Timer(1.0, self._work.set)
        timer.daemon = True
        timer.start()


def _leave_with_parent() -> None:
    """Worker processes end when the coordinator does, also when it is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _warm_up(threads: int) -> int:
    from coordinator.engine.worker import warm_up

    return warm_up(threads)


def _run(kind: str, payload: dict[str, object], blobs: str) -> dict[str, object]:
    from coordinator.engine.worker import run

    return run(kind, payload, blobs)
