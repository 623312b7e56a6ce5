"""Runs jobs in worker processes on this machine, one a lane, so that agents never wait for an evaluation."""

import logging
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.outage import is_away, reason
from fedcybgd.coordinator.domain.job import LANES
from fedcybgd.coordinator.domain.mending import LOST, MEND
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.services import outcomes
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.coordinator.services.upkeep import mending
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.host import interrupt

log = logging.getLogger("fedcoord.jobs")
T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 30.0
LOOK_EVERY_S = 30.0
CANNOT_START = (OSError, MemoryError, RuntimeError, BrokenExecutor)
"""What a process or its threads and pipes cannot be made for: no memory, no more files, no more threads."""


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


class Stopped(Exception):
    """The coordinator stops: what the lane was at is done again at the next start."""


@dataclass(frozen=True)
class Taken:
    """A job, out of the transaction that took it."""

    id: str
    kind: str
    payload: dict[str, Any]
    subject: str


class Lane:
    """Takes one job after another, and does not rest before it is written what came of each."""

    def __init__(self, name: str, database: Database, blobs: Path, threads: int) -> None:
        self._name, self._database, self._blobs, self._threads = name, database, blobs, threads
        self._work, self._stopping = threading.Event(), threading.Event()
        self._pool: Executor | None = self._new_pool()
        self._thread = threading.Thread(target=self._loop, name=f"lane-{name}", daemon=True)

    def start(self) -> None:
        self._work.set()
        self._thread.start()

    def wake(self) -> None:
        self._work.set()

    def stop(self) -> None:
        """Let go at once: a job that is under way is done again at the next start."""
        self._stopping.set()
        self._work.set()
        if (pool := self._pool) is not None:
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)

    def _new_pool(self) -> Executor:
        # Spawned, not forked: the web process has threads. Warmed up now, so that the first delta does not wait for torch.
        pool = ProcessPoolExecutor(1, get_context("spawn"), _leave_with_parent)
        with interrupt.withheld():
            pool.submit(_warm_up, self._threads)
        return pool

    def _loop(self) -> None:
        while not self._stopping.is_set():
            # Looked at now and then without a wake as well: a commit whose answer was lost on the way has woken nobody.
            self._work.wait(LOOK_EVERY_S)
            self._work.clear()
            try:
                while not self._stopping.is_set() and self._one():
                    pass
            except Stopped:
                return
            except Exception:
                log.exception("lane %s stumbled; it goes on", self._name)

    def _one(self) -> bool:
        """Take and do one job; whether there was one."""
        job = self._patiently("look for a job", self._take, is_away)
        if job is None:
            return False
        try:
            result = self._run(job)
        except Exception as error:
            self._failed(job, error)
            return True
        try:
            self._write(job, lambda session: outcomes.complete(session, job.id, result))
        except Stopped:
            raise
        except Exception as error:
            self._failed(job, error)
        return True

    def _take(self) -> Taken | None:
        with self._database.transaction() as session:
            job = jobs.take(session, self._name)
            return None if job is None else Taken(job.id, job.kind, job.payload, job.subject)

    def _run(self, job: Taken, mended: set[str] | None = None) -> dict[str, Any]:
        """What the engine makes of a job. Blobs that it finds lost are made again on the way, where they can be: each once."""
        mended = set() if mended is None else mended
        while True:
            try:
                return self._run_once(job)
            except CoordinatorError as error:
                digest = error.detail.get("digest")
                if error.code not in LOST or digest is None or digest in mended:
                    raise
                mended.add(digest)
                self._mend(job, error, mended)

    def _mend(self, job: Taken, error: CoordinatorError, mended: set[str]) -> None:
        """Raises the error, with the name of its blob, where that cannot be made again."""
        digest = error.detail["digest"]
        found = self._asked("say that a blob is lost", lambda session: mending.begin(session, error, job.subject))
        try:
            if not found.ways:
                raise error
            self._run(Taken(job.id, MEND, found.model_dump(mode="json"), job.subject), mended)
        except FedError as failed:
            name = self._asked("name a blob", lambda session: mending.names_of(session, digest))
            raise type(error)(f"{name}: {error.message}; {mending.put_back(digest)}", digest=digest) from failed
        self._asked("say that a blob is made again", lambda session: mending.done(session, digest, job.subject))

    def _asked(self, what: str, ask: Callable[[Session], T]) -> T:
        def transaction() -> T:
            with self._database.transaction() as session:
                return ask(session)

        return self._patiently(what, transaction, is_away)

    def _run_once(self, job: Taken) -> dict[str, Any]:
        """Raises what the engine raised, `BrokenExecutor` if it died of the job."""
        running = self._patiently("start the engine", lambda: self._begin(job), lambda error: isinstance(error, CANNOT_START))
        return running.result()

    def _begin(self, job: Taken) -> Future[dict[str, Any]]:
        if self._stopping.is_set():
            raise Stopped
        if self._pool is None:
            self._pool = self._new_pool()
        try:
            return self._pool.submit(_run, job.kind, job.payload, str(self._blobs))
        except BrokenExecutor:
            self._pool = None  # died while it had nothing to do: not this job's fault
            raise

    def _write(self, job: Taken, outcome: Callable[[Session], None]) -> None:
        """Commit what became of a job, however long the database is away: the result is kept here until then."""

        def commit() -> None:
            with self._database.transaction() as session:
                outcome(session)

        self._patiently(f"write what came of job {job.id} ({job.kind})", commit, is_away)

    def _failed(self, job: Taken, error: Exception) -> None:
        if self._stopping.is_set():
            raise Stopped
        if died := isinstance(error, BrokenExecutor):
            self._pool = None
        if isinstance(error, FedError):
            code, message = error.code, error.message
        else:
            code, message = "worker_died" if died else "engine_failed", reason(error)
        log.error("job %s (%s) failed: %s", job.id, job.kind, message, exc_info=None if died or isinstance(error, FedError) else error)
        self._write(job, lambda session: outcomes.fail(session, job.id, code, message[:4000], try_again=died))

    def _patiently(self, what: str, step: Callable[[], T], passes: Callable[[Exception], bool]) -> T:
        """Take a step, again and again while what hinders it may pass, with growing and jittered waits. Raises `Stopped` in between."""
        wait = FIRST_WAIT_S
        while True:
            try:
                return step()
            except Exception as error:
                if not passes(error):
                    raise
                if self._stopping.is_set():
                    raise Stopped from error
                log.warning("lane %s cannot %s yet (%s); it tries again", self._name, what, reason(error))
            if self._stopping.wait(wait * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter
                raise Stopped
            wait = min(2 * wait, LONGEST_WAIT_S)


def _leave_with_parent() -> None:
    """Worker processes end when the coordinator does, also when it is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _warm_up(threads: int) -> int:
    from fedcybgd.coordinator.engine.worker import warm_up

    return warm_up(threads)


def _run(kind: str, payload: dict[str, object], blobs: str) -> dict[str, object]:
    from fedcybgd.coordinator.engine.worker import run

    return run(kind, payload, blobs)
