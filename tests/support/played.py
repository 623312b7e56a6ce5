"""An engine that plays its jobs: behind the protocol `Engine`, without torch, and as slow or as dead as a test wants it."""

import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor

from pydantic import BaseModel

from fedcybgd.coordinator.domain.jobs.payloads import ImportResult

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
