"""The engine as a process of its own on this machine, warm before the first job comes."""

import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path

from pydantic import BaseModel

from fedcybgd.shared.host import interrupt


class EngineProcess:
    def __init__(self, blobs: Path, threads: int) -> None:
        self._blobs = str(blobs)
        # Spawned, not forked: the web process has threads. Warmed up now, so that the first delta does not wait for torch.
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _leave_with_parent)
        with interrupt.withheld():
            self._pool.submit(_warm_up, threads)

    def submit(self, kind: str, payload: BaseModel) -> Future[BaseModel]:
        return self._pool.submit(_run, kind, payload, self._blobs)

    def close(self) -> None:
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.terminate()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _leave_with_parent() -> None:
    """The process ends when the coordinator does, also when it is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _warm_up(threads: int) -> int:
    from fedcybgd.coordinator.engine.worker import warm_up

    return warm_up(threads)


def _run(kind: str, payload: BaseModel, blobs: str) -> BaseModel:
    from fedcybgd.coordinator.engine.worker import run

    return run(kind, payload, blobs)
