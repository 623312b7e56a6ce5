"""The engine as tasks of a Ray cluster: each job runs wherever there is room, and is tried again by our rules alone."""

import logging
import threading
from concurrent.futures import BrokenExecutor, Future, wait
from typing import Protocol

from pydantic import BaseModel

from fedcybgd.coordinator.jobs.engine import EngineAway
from fedcybgd.coordinator.jobs.ray_cluster import result_of
from fedcybgd.coordinator.jobs.ray_node import Answer
from fedcybgd.shared.host.rarely import Rarely

log = logging.getLogger("fedcoord.engine")
FIRST_LOOK_S, LOOK_EVERY_S = 0.02, 1.0
ENDED = "the engine was ended"


class Task(Protocol):
    """A job on its way through a cluster."""

    @property
    def answer(self) -> Future[Answer]: ...

    def used(self) -> float | None:
        """Processor seconds that it says that it has used; None: it has not begun. Raises `EngineAway`."""
        ...

    def has_place(self) -> bool:
        """Whether there is a node still that is large enough for it. Raises `EngineAway`."""
        ...

    def end(self) -> None:
        """Cancel it, whatever it is at, and forget it. May take as long as the cluster does."""
        ...


class Cluster(Protocol):
    def begin(self, kind: str, payload: BaseModel) -> Task:
        """Have a job done wherever there is room. Raises `EngineAway`."""
        ...


class RayEngine:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._ended = False
        self._job: _Job | None = None
        self._before = 0.0
        """processor seconds of the jobs before this one"""

    def submit(self, kind: str, payload: BaseModel) -> Future[BaseModel]:
        """Returns once the job has begun somewhere: what waits for room does not hang."""
        job = _Job(kind, self._cluster.begin(kind, payload))
        with self._lock:
            self._before = self.cpu_s()
            self._job = job
            ended = self._ended
        job.follow()
        if ended:
            job.end()
        job.begun.wait()
        return job.result

    def cpu_s(self) -> float:
        return self._before + (self._job.used if self._job else 0.0)

    def close(self) -> None:
        with self._lock:
            self._ended, job = True, self._job
        if job is not None:
            job.end()


class _Job:
    def __init__(self, kind: str, task: Task) -> None:
        self._kind, self._task, self._lock = kind, task, threading.Lock()
        self.begun, self.used = threading.Event(), 0.0
        self.result: Future[BaseModel] = Future()

    def follow(self) -> None:
        """In a thread of its own: the cluster may take its time over every answer."""
        threading.Thread(target=self._follow, name=f"ray-{self._kind}", daemon=True).start()

    def end(self) -> None:
        self._settle(error=BrokenExecutor(ENDED))

    def _follow(self) -> None:
        try:
            self._look_until_done()
            if not self.result.done():
                self._settle(result_of(self._task.answer))
        except Exception as error:
            self._settle(error=error)
        finally:
            self._task.end()

    def _look_until_done(self) -> None:
        pause, waits = FIRST_LOOK_S, Rarely()
        while not self.result.done() and not wait([self._task.answer], pause).done:
            used = self._task.used()
            if used is not None:
                self.used = used
                self.begun.set()
            elif pause == LOOK_EVERY_S:
                if not self._task.has_place():
                    raise EngineAway("the node that was to have the job is gone")
                if waits.is_due():
                    log.warning("a job (%s) waits for room on the Ray cluster", self._kind)
            pause = min(2 * pause, LOOK_EVERY_S)

    def _settle(self, result: BaseModel | None = None, error: Exception | None = None) -> None:
        """Once; what comes after it is nothing."""
        with self._lock:
            if not self.result.done():
                if error is not None or result is None:
                    self.result.set_exception(error or RuntimeError("a node gave no result"))
                else:
                    self.result.set_result(result)
        self.begun.set()
