"""An engine that plays its jobs: behind the protocol `Engine`, without torch, and as slow or as dead as a test wants it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

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
