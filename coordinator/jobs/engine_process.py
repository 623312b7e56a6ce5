"""The engine as a process of its own on this machine, warm before the first job comes."""

import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from ctypes import c_double
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import psutil
from pydantic import BaseModel

from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.jobs.engine import HUNG_S
from fedcybgd.coordinator.storage import Place, open_place
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.host import interrupt
from fedcybgd.shared.host.plain_streams import speak_plainly

log = logging.getLogger("fedcoord.engine")

TELL_EVERY_S = 1.0
NOTICED_S = 0.01
"""The two clocks are not read at the same moment: a smaller step may be nothing."""
FORK_LOOKS = 48
"""So often the process that engines are forked from is looked at before it counts as hanging; a look for which this process was stopped, too, is one of them."""
FORK_IDLE_S = 0.1
"""Processor seconds that it may use while it hangs: it looks whether its coordinator is there (`preloaded`)."""
REPORTED_S = 10.0
"""Within this time an engine that was ended is known to be dead, unless it cannot die, or who forked it tells nobody."""
PRELOADED = "fedcybgd.coordinator.engine.preloaded"
"""What all engines of a coordinator import once, and have in memory that they share."""
COMMANDS = "fedcybgd.coordinator.commands."
"""What a program of ours consists of: Python begins each process with the program that starts it, so these are imported once, too."""


class SharedMemoryMissing(CoordinatorError):
    code = "shared_memory_missing"


def check_shared_memory() -> None:
    """Raise `SharedMemoryMissing` where processes cannot share a lock or a number: no engine would ever begin."""
    try:
        context = get_context("fork")
        context.Lock()
        context.RawValue(c_double)
    except (OSError, ImportError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC:  # which passes
            raise SharedMemoryMissing(
                f"engines need shared memory, and this system gives none ({error}): /dev/shm must be there, and writable "
                "(of a container: a tmpfs at /dev/shm)"
            ) from error


class EngineProcess:
    def __init__(self, place: Place, threads: int, device: str = "cpu") -> None:
        """Takes the seconds that torch does, where there was no engine of this process before: to be called by who has the time."""
        self._place = place
        context = _context(device)
        self._used: Any = context.RawValue(c_double)
        self._pool = ProcessPoolExecutor(1, context, begin, (self._used,))
        # Now, so that the first delta does not wait for torch.
        with interrupt.withheld(), _forked_in_time():
            self._pool.submit(_warm_up, threads, device).add_done_callback(_warmed_up)

    def submit(self, kind: str, payload: BaseModel) -> Future[BaseModel]:
        return self._pool.submit(_run, kind, payload, self._place)

    def cpu_s(self) -> float:
        return float(self._used.value)

    def close(self) -> None:
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            if process.is_alive():  # else others may have its number
                process.kill()  # one that is stopped heeds nothing else; blobs are written aside, so nothing is torn
                threading.Thread(target=_see_it_dead, args=(process,), daemon=True).start()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _context(device: str) -> Any:
    """How an engine's process begins. Not as a fork of the web process, which has threads: of one that has imported what engines need.

    Each is new elsewhere: where there is no such process, or it finds no place for its socket, and where a card is used, which
    knows nothing of forks.
    """
    if sys.platform == "linux" and device == "cpu":
        forked = get_context("forkserver")
        forked.set_forkserver_preload([*(name for name in list(sys.modules) if name.startswith(COMMANDS)), PRELOADED])
        os.environ["ENGINES_OF"] = str(os.getpid())
        resource_tracker.ensure_running()  # which lets Ctrl-C in when it starts
        try:
            with interrupt.withheld():
                forkserver.ensure_running()
            return forked
        except OSError as error:
            log.warning("no process to fork engines from (%s); each imports torch for itself", error)
    return get_context("spawn")


@contextmanager
def _forked_in_time() -> Iterator[None]:
    """Who asks a process that hangs for an engine would wait for good: it is ended, and asking fails."""
    begun = threading.Event()

    def watch() -> None:
        while (server := _fork_server()) is not None:
            used = _used(server)
            for _ in range(FORK_LOOKS):
                if begun.wait(HUNG_S / FORK_LOOKS):
                    return
            if _used(server) - used < FORK_IDLE_S:
                log.error("the process that engines are forked from has done nothing for %.0f s: it is ended, and another begun", HUNG_S)
                _end(server)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        begun.set()


def _see_it_dead(engine: BaseProcess) -> None:
    """Who forked an engine tells of its death. One that does not is ended as well, which tells it of all of its engines."""
    until = time.monotonic() + REPORTED_S
    while engine.is_alive():
        if time.monotonic() >= until:
            if (server := _fork_server()) is not None:
                log.error("nothing is heard of an engine that was ended: the process that it was forked from is ended, too")
                _end(server)
            return
        time.sleep(REPORTED_S / 100)


def _fork_server() -> psutil.Process | None:
    """The process that engines of this one are forked from."""
    server: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    try:
        return None if server is None else psutil.Process(server)
    except psutil.Error:
        return None


def _used(server: psutil.Process) -> float:
    try:
        return sum(server.cpu_times()[:2])
    except psutil.Error:
        return 0.0


def _end(server: psutil.Process) -> None:
    with suppress(psutil.Error):
        server.kill()


def begin(used: Any) -> None:
    """In the process: it ends when the coordinator does, also when that is killed, and tells what it uses of the processor."""
    parent = parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    speak_plainly()

    def watch() -> None:
        parent.join()
        os._exit(1)

    def tell() -> None:
        while True:
            now = time.process_time() - time.thread_time()  # what this thread uses is no work
            if now - used.value >= NOTICED_S:
                used.value = now
            time.sleep(TELL_EVERY_S)

    for duty in (watch, tell):
        threading.Thread(target=duty, daemon=True).start()


def _warmed_up(warmed: Future[int]) -> None:
    if not warmed.cancelled() and isinstance(error := warmed.exception(), FedError):
        log.error("%s; measurements are made on the processor (FEDCOORD_ENGINE_DEVICE)", error)


def _warm_up(threads: int, device: str) -> int:
    from fedcybgd.coordinator.engine.entries import warm_up

    return warm_up(threads, device)


def _run(kind: str, payload: BaseModel, place: Place) -> BaseModel:
    from fedcybgd.coordinator.engine.entries import run

    return run(kind, payload, open_place(place))
