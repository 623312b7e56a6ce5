"""What is seen of processes from outside: the bytes between them, their memory and their processor time."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable

import psutil

EVERY_S = 0.25


class Relay:
    """Passes what comes to a port of its own on to another of this machine, and what comes back, and counts both."""

    def __init__(self, to: int) -> None:
        self._to, self._lock = to, threading.Lock()
        self.up = self.down = self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            self.connections += 1
            threading.Thread(target=self._pass, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, "down"), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while some := one.recv(1 << 18):
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(some))
                other.sendall(some)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Watch:
    """The most memory, and the processor time, of processes and their children while it is entered; `of` says which, now."""

    def __init__(self, of: Callable[[], Iterable[int]]) -> None:
        self._of, self._over = of, threading.Event()
        self.peak, self._before, self._cpu = 0, 0.0, dict[int, float]()

    def __enter__(self) -> "Watch":
        self._look()
        self._before = sum(self._cpu.values())
        threading.Thread(target=self._go_on, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu.values()) - self._before

    def _go_on(self) -> None:
        while not self._over.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        total = 0
        for process in (one for pid in self._of() for one in tree(pid)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
        self.peak = max(self.peak, total)


def tree(pid: int) -> list[psutil.Process]:
    """It and all of its children; nothing once it is gone."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def kill(pid: int) -> None:
    """SIGKILL for it and all of its children."""
    for process in tree(pid):
        with contextlib.suppress(psutil.Error):
            process.kill()


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
