"""Tests by several processes at once, forked when all tests are collected: what is imported by then is imported once for all.

    pytest --workers 4

A worker does the tests of one module after another, so that what a module makes is made once. Every other worker begins with those of
`SLOW`, which wait more than they compute; who finds no more of his own goes on with those of the others.
"""

import atexit
import os
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import SimpleNamespace
from typing import Any

import pytest

SLOW = ("faults", "e2e", "browser")
"""Folders of tests of real processes."""
TOGETHER = {"federation", "stage"}
"""Fixtures that take long to make: all tests with one of them are one worker's."""
Batch = list[int]
"""Places in the list of all tests."""


@dataclass
class Worker:
    pid: int
    line: Connection
    slow: bool
    left: Batch = field(default_factory=list)
    """What it was given and has not begun"""
    at: int | None = None
    """The test that it has begun"""


class Workers:
    """Plugin of the first process: it forks, hands out, and tells pytest what the workers tell."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[Worker] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.config.option.collectonly or session.testsfailed:
            return None  # pytest says why it runs none
        self._session = session
        self._waiting = {True: deque[Batch](), False: deque[Batch]()}
        for batch in batches(session.items):
            self._waiting[session.items[batch[0]].path.parent.name in SLOW].append(batch)
        session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # one for all, which the next sessions find and clear
        try:
            for number in range(min(self._count, sum(map(len, self._waiting.values())))):
                self._fork(slow=number % 2 == 0)
            while self._workers and not session.shouldfail and not session.shouldstop:
                for line in wait([worker.line for worker in self._workers]):
                    self._hear(next(worker for worker in self._workers if worker.line is line))
        finally:
            for worker in self._workers:
                worker.line.close()  # which ends it when it says something
            for worker in self._workers:
                os.waitpid(worker.pid, 0)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        return True

    def _fork(self, slow: bool) -> None:
        ours, its = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            its.close()
            self._workers.append(Worker(pid, ours, slow))
            return
        atexit._clear()  # what the first process does when it ends
        for line in [ours, *(worker.line for worker in self._workers)]:
            line.close()  # as long as anybody has the other end of a line, it does not end
        os._exit(work(self._session, its))

    def _hear(self, worker: Worker) -> None:
        session, hook = self._session, self._session.config.hook
        what, told = heard(worker.line)
        if what == "died":
            self._bury(worker)
        elif what == "asks":
            queue = self._waiting[worker.slow] or self._waiting[not worker.slow]
            worker.left += (batch := queue.popleft() if queue else [])
            with suppress(BrokenPipeError):  # that it is dead is heard next
                worker.line.send(batch)
        elif what == "begins":
            worker.left.remove(told)
            worker.at = told
            hook.pytest_runtest_logstart(nodeid=session.items[told].nodeid, location=session.items[told].location)
        elif what == "ends":
            worker.at = None
            hook.pytest_runtest_logfinish(nodeid=session.items[told].nodeid, location=session.items[told].location)
        elif what == "reports":
            hook.pytest_runtest_logreport(report=hook.pytest_report_from_serializable(config=session.config, data=told))
        elif what == "warns":
            message, where = told
            hook.pytest_warning_recorded.call_historic(kwargs={"warning_message": warnings.WarningMessage(*message), **where})

    def _bury(self, worker: Worker) -> None:
        """It has nothing more to do, or a test has killed it: that one has failed, and another worker does what was left to do."""
        self._workers.remove(worker)
        worker.line.close()
        _, status = os.waitpid(worker.pid, 0)
        if worker.at is not None:
            item = self._session.items[worker.at]
            why = f"the process died at it, with status {os.waitstatus_to_exitcode(status)}"
            report = pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")
            self._session.config.hook.pytest_runtest_logreport(report=report)
        elif status:
            raise RuntimeError(f"a worker died between tests, with status {os.waitstatus_to_exitcode(status)}")
        if worker.left:
            self._waiting[worker.slow].appendleft(worker.left)
            self._fork(worker.slow)


def heard(line: Connection) -> tuple[str, Any]:
    try:
        what, told = line.recv()
    except (EOFError, ConnectionError):
        return "died", None
    return what, told


def batches(items: list[pytest.Item]) -> Iterator[Batch]:
    """What one worker does without another in between."""
    found: dict[object, Batch] = {}
    for place, item in enumerate(items):
        together = TOGETHER.intersection(getattr(item, "fixturenames", ()))
        found.setdefault(min(together, default=(item.path, live_of(item))), []).append(place)
    yield from found.values()


def live_of(item: pytest.Item) -> object:
    """The database that its coordinator is on: pytest has put those of one together, for to change takes a second."""
    return getattr(item, "callspec", None) and item.callspec.params.get("live")  # type: ignore[attr-defined]


class Telling:
    """Plugin of a worker: the first process hears what pytest is told here."""

    def __init__(self, config: pytest.Config, line: Connection) -> None:
        self._config, self._line = config, line

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._line.send(("reports", self._config.hook.pytest_report_to_serializable(config=self._config, report=report)))

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any) -> None:
        message = (str(warning_message.message), warning_message.category, warning_message.filename, warning_message.lineno)
        self._line.send(("warns", (message, {"when": when, "nodeid": nodeid, "location": location})))


def work(session: pytest.Session, line: Connection) -> int:
    """In a worker: the tests that it is given, until there are none. What its process exits with."""
    config = session.config
    plugins = config.pluginmanager
    plugins.register(Telling(config, line))
    reporter = plugins.getplugin("terminalreporter")
    plugins.unregister(reporter)
    plugins.register(SimpleNamespace(_tw=reporter._tw), "terminalreporter")  # others write to the same terminal, and it nothing
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()  # the file of the first process
    capture.start_global_capturing()
    capture.suspend_global_capture(in_=False)
    try:
        line.send(("asks", None))
        todo: Batch = line.recv()
        while todo:
            place = todo.pop(0)
            line.send(("begins", place))
            if not todo:  # what is torn down after a test is decided by the next one
                line.send(("asks", None))
                todo = line.recv()
            following = session.items[todo[0]] if todo else None
            config.hook.pytest_runtest_protocol(item=session.items[place], nextitem=following)
            line.send(("ends", place))
        return 0
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return 0  # nobody wants to know more
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        session._setupstate.teardown_exact(None)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
