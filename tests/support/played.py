"""An engine that plays its jobs: behind the protocol `Engine`, without torch, and as slow or as dead as a test wants it."""

import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor

from pydantic import BaseModel

from fedcybgd.coordinator.domain.jobs.payloads import ImportResult
from fedcybgd.coordinator.jobs.ray_node import DONE, FAILED, Answer

Play = Callable[[str, BaseModel], BaseModel]
IMPORTED = ImportResult(config={}, files=[], blocks=[], left_out=[], num_parameters=7)


class PlayedEngine:
    def __init__(self, play: Play) -> None:
        self._play, self._pool = play, ThreadPoolExecutor(1)
        self.used = 0.0
        """what it says that it has used of the processor"""

    def submit(self, kind: str, payload: BaseModel) -> Future[BaseModel]:
        return self._pool.submit(self._play, kind, payload)

    def cpu_s(self) -> float:
        return self.used

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class PlayedTask:
    """As coordinator/jobs/ray_cluster.py has one."""

    def __init__(self, engine: PlayedEngine, kind: str, payload: BaseModel) -> None:
        self._engine, self.answer = engine, Future[Answer]()
        engine.submit(kind, payload).add_done_callback(self._answered)

    def _answered(self, played: Future[BaseModel]) -> None:
        error = played.exception()
        if isinstance(error, BrokenExecutor):
            self.answer.set_exception(error)
        else:
            self.answer.set_result((FAILED, error) if error else (DONE, played.result()))

    def used(self) -> float:
        return self._engine.used

    def has_place(self) -> bool:
        return True

    def end(self) -> None:
        pass


class PlayedCluster:
    """A cluster of one node, whose jobs an engine plays."""

    def __init__(self, engine: PlayedEngine) -> None:
        self._engine = engine

    def begin(self, kind: str, payload: BaseModel) -> PlayedTask:
        return PlayedTask(self._engine, kind, payload)


class MortalEngine(PlayedEngine):
    """Its job dies with it, as with a process."""

    def __init__(self, play: Play) -> None:
        super().__init__(play)
        self._running: Future[BaseModel] = Future()

    def submit(self, kind: str, payload: BaseModel) -> Future[BaseModel]:
        self._running = running = Future()

        def end(played: Future[BaseModel]) -> None:
            if not running.done():
                running.set_result(played.result())

        super().submit(kind, payload).add_done_callback(end)
        return running

    def close(self) -> None:
        super().close()
        if not self._running.done():
            self._running.set_exception(BrokenExecutor("the engine was ended"))


class Held:
    """A play that begins, and ends when it is let go on: with a result, or an error."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.times = 0

    def __call__(self, _kind: str, _payload: BaseModel) -> BaseModel:
        self.times += 1
        self.began.set()
        assert self.go_on.wait(30)
        if self.error is not None:
            raise self.error
        return IMPORTED
