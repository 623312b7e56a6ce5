"""One of our commands in a process of its own, which ends with the program that started it."""

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedcybgd.local.errors import NotStarted, ProcessEnded
from fedcybgd.local.place import Place
from fedcybgd.shared.files.disk import disk_reason

LINES = 20
"""of the log in an error"""
GRACE_S = 30.0
LOOK_EVERY_S = 0.02


class Process:
    """Its output goes to the end of a file. Ctrl-C is for the program alone; its end is noticed by the process (`--until-eof`)."""

    def __init__(self, module: str, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._command = [sys.executable, "-m", module, *words, "--until-eof"]
        self.log = log
        self._environment = environment
        self._popen: subprocess.Popen[bytes] | None = None
        self._from = 0

    def start(self, more: Sequence[str] = ()) -> None:
        """Start it, with `more` words for this time. Raises `NotStarted`."""
        try:
            self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                self._from = log.tell()
                environment = {"PYTHONUNBUFFERED": "1", **self._environment}
                self._popen = subprocess.Popen(
                    [*self._command, *more], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, process_group=0
                )  # fmt: skip
        except OSError as error:
            full = disk_reason(error) == "disk_full"
            advice, code = ("free space", "disk_full") if full else ("name another home", "home_unusable")
            raise NotStarted(f"{error.filename or self.log}: {error.strerror or error}; {advice}", "", code) from error
        weakref.finalize(self, _end, self._popen)

    def wait_until(self, up: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Look until `up`. Raises `NotStarted` when the process ends, or after `timeout_s` seconds; then it is ended."""
        until = time.monotonic() + timeout_s
        while not up():
            if not self.running:
                if up():  # it said why, and ended
                    return
                raise NotStarted(f"{what} ended with status {self._started().returncode}; its log is {self.log}", self.tail())
            if time.monotonic() > until:
                self.kill()
                raise NotStarted(f"{what} did not come up within {timeout_s:g} s; its log is {self.log}", self.tail())
            time.sleep(LOOK_EVERY_S)

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def check(self) -> None:
        """Raise `ProcessEnded` if it is not running."""
        if not self.running:
            status = "" if self._popen is None else f" with status {self._popen.returncode}"
            raise ProcessEnded(f"{' '.join(self._command[2:4])} has ended{status}; its log is {self.log}", self.tail())

    def stop(self, timeout_s: float = GRACE_S) -> int:
        """SIGTERM, and SIGKILL where that has not worked after `timeout_s` seconds; the exit status."""
        popen = self._started()
        popen.send_signal(signal.SIGTERM)
        try:
            return popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def ended(self, within_s: float = 10) -> int:
        """The exit status of a process that is about to end by itself; it gets so many seconds."""
        try:
            return self._started().wait(within_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL; its children notice by themselves."""
        popen = self._started()
        popen.kill()
        return popen.wait()

    def tail(self) -> str:
        """The last lines of its log since it was started."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._from, log.seek(0, os.SEEK_END) - 64_000))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-LINES:])
        except OSError:
            return ""

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._popen is None:
            raise ProcessEnded(f"{' '.join(self._command[2:4])} was not started", "")
        return self._popen


class LocalProcess:
    """A daemon of ours in a process of its own, with a home. Use it as a context manager, or `stop` it; it ends with the program in any case."""

    def __init__(self, place: Place, process: Process, timeout_s: float) -> None:
        """For the ways to start one that it has; nothing is started yet."""
        self._place, self._process, self._timeout_s = place, process, timeout_s

    @property
    def home(self) -> Path:
        return self._place.home

    @property
    def log(self) -> Path:
        """The file with everything that it has written; of an agent rows may be quoted in it."""
        return self._process.log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.running

    def check(self) -> None:
        """Raise `ProcessEnded` if it is not running."""
        self._process.check()

    def stop(self, timeout_s: float = GRACE_S) -> int:
        """Ask it to stop; the exit status. An agent gives back what it holds; whatever runs at a coordinator goes on after the next start."""
        return self._process.stop(timeout_s)

    def kill(self) -> int:
        """SIGKILL, as a machine that fails; its children notice."""
        return self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.running:
            self.stop()
        self._place.forget()


def _end(popen: "subprocess.Popen[bytes]") -> None:
    """For whoever forgot to: when the object is gone, or the program ends."""
    if popen.poll() is None:
        popen.terminate()
        try:
            popen.wait(10)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
    if popen.stdin is not None:
        popen.stdin.close()
