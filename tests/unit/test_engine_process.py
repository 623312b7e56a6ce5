"""The engine's process tells what it uses of the processor: one that works, and one that hangs. One that hangs can be ended."""

import errno
import os
import signal
import time
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from ctypes import c_double
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcybgd.coordinator.engine.device import CPU, CardMissing, chosen, measure_on
from fedcybgd.coordinator.jobs import engine_process
from fedcybgd.coordinator.jobs.engine_process import EngineProcess, SharedMemoryMissing
from fedcybgd.coordinator.parts import engine_of
from fedcybgd.coordinator.settings import Settings
from tests.support.played import IMPORTED
from tests.support.processes import wait_for


class NothingShared:
    """What a context gives where /dev/shm is read-only."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def Lock(self) -> None:
        raise self._error


@pytest.mark.parametrize(
    "error", [OSError(errno.EROFS, "Read-only file system"), ImportError("no sem_open"), OSError(errno.ENOSPC, "full")]
)
def test_a_coordinator_whose_engines_could_never_begin_does_not_start(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "get_context", lambda _: NothingShared(error))
    engine_of(Settings(home=tmp_path, lanes="none"))
    if getattr(error, "errno", None) == errno.ENOSPC:
        engine_of(Settings(home=tmp_path))
    else:
        with pytest.raises(SharedMemoryMissing, match="/dev/shm"):
            engine_of(Settings(home=tmp_path))


def work_then_hang(used: Any, hang: Any) -> None:
    engine_process.TELL_EVERY_S = 0.05
    engine_process.begin(used)
    while not hang.is_set():
        pass
    time.sleep(60)


def test_a_process_that_works_moves_and_one_that_hangs_does_not() -> None:
    spawned = get_context("spawn")
    used: Any = spawned.RawValue(c_double)
    hang = spawned.Event()
    process = spawned.Process(target=work_then_hang, args=(used, hang), daemon=True)
    process.start()
    try:
        wait_for(lambda: used.value > 0)
        first = used.value
        wait_for(lambda: used.value > first)
        hang.set()
        seen: list[float] = []

        def stands_still() -> bool:
            seen.append(used.value)
            return len(seen) > 30 and len(set(seen[-20:])) == 1

        wait_for(stands_still)
    finally:
        process.kill()
        process.join()


def test_a_process_that_is_stopped_is_ended_and_its_job_with_it(tmp_path: Path) -> None:
    """SIGTERM waits for a stopped process to go on."""
    engine = EngineProcess(tmp_path, 1)
    (child,) = engine._pool._processes.values()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    under_way = engine.submit("import", IMPORTED)
    engine.close()
    with pytest.raises((BrokenExecutor, CancelledError)):  # it may not even have reached the process
        under_way.result(20)
    wait_for(lambda: not child.is_alive())


def stopped_fork_server() -> psutil.Process:
    server = engine_process._fork_server()
    assert server is not None
    server.suspend()
    return server


def test_where_engines_are_forked_from_may_hang_and_stops_no_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells nobody that an engine is dead, and forks none: whoever waits for that is told, and the next one is forked from another."""
    monkeypatch.setattr(engine_process, "REPORTED_S", 0.3)
    engine = EngineProcess(tmp_path, 1)
    (child,) = engine._pool._processes.values()
    stopped = stopped_fork_server()
    child.kill()
    under_way = engine.submit("import", IMPORTED)
    engine.close()
    with pytest.raises((BrokenExecutor, CancelledError)):
        under_way.result(20)
    wait_for(lambda: stopped.status() == psutil.STATUS_ZOMBIE)
    forkserver.ensure_running()
    monkeypatch.setattr(engine_process, "HUNG_S", 0.5)
    another = stopped_fork_server()
    with ThreadPoolExecutor(1) as lane:
        asked = lane.submit(EngineProcess, tmp_path, 1)
        try:
            with pytest.raises(EOFError):
                asked.result(20)
        finally:
            another.kill()


def test_a_device_that_is_not_there_is_told_and_the_processor_measures(caplog: pytest.LogCaptureFixture) -> None:
    measure_on(CPU)
    with pytest.raises(CardMissing, match="cannot compute on cuda:99 here") as refused:
        measure_on("cuda:99")
    assert chosen() == CPU
    warmed: Future[int] = Future()
    warmed.add_done_callback(engine_process._warmed_up)
    warmed.set_exception(refused.value)
    assert "measurements are made on the processor (FEDCOORD_ENGINE_DEVICE)" in caplog.text
