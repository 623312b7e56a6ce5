"""An engine in a thread of the test process: a process takes ten seconds to import torch, and cannot be made to stumble."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from pydantic import BaseModel

from fedcybgd.coordinator.storage import EngineStore


class EngineThread:
    def __init__(self, store: EngineStore, initializer: Callable[[], None] | None = None) -> None:
        self._store, self._pool = store, ThreadPoolExecutor(1, initializer=initializer)

    def submit(self, kind: str, payload: BaseModel) -> Future[BaseModel]:
        from fedcybgd.coordinator.engine.entries import run

        return self._pool.submit(run, kind, payload, self._store)

    def cpu_s(self) -> float:
        return time.process_time()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
