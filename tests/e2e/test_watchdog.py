"""systemd's watchdog hears of real work: real processes that speak to a real socket, and fall silent when they are of no use any more."""

import contextlib
import os
import queue
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcybgd import Agent, Coordinator
from tests.support.processes import ENVIRONMENT, NO_JOBS

WITHIN_S = 1.0
"""A sign is given four times in it"""


class Listener:
    """Listens in systemd's place, all the time: what nobody fetches is lost to the sender."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._heard: queue.Queue[str] = queue.Queue()
        self.environment = {**ENVIRONMENT, "NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(WITHIN_S * 1e6))}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while word := self._socket.recv(100).decode():
            self._heard.put(word)

    def hears(self, word: str, limit_s: float = 60) -> None:
        """Wait for a word; what was said before it is forgotten."""
        while self._heard.get(timeout=limit_s) != word:
            pass

    def hears_a_sign(self) -> None:
        """One from now on."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._heard.get_nowait()
        self.hears("WATCHDOG=1")

    def hears_nothing(self) -> None:
        """After what was under way there is silence, for longer than there may be."""
        for _ in range(20):
            try:
                self._heard.get(timeout=1.5 * WITHIN_S)
            except queue.Empty:
                return
        raise AssertionError("signs are still given")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Nobody else can write into it."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


def test_signs_are_given_while_there_is_use_in_it_and_no_longer(tmp_path: Path) -> None:
    at_coordinator, at_agent = Listener(tmp_path / "coordinator"), Listener(tmp_path / "agent")
    (rows := tmp_path / "rows.csv").write_text("text,label\na,b\n")
    with Coordinator.local(tmp_path / "home", environment=at_coordinator.environment, sweep_every_s=0.1, **NO_JOBS) as coordinator:
        at_coordinator.hears("READY=1")
        at_coordinator.hears_a_sign()
        with locked(coordinator.home / "coordinator.db"):
            at_coordinator.hears_nothing()
        at_coordinator.hears_a_sign()
        with stopped(coordinator.pid):
            at_coordinator.hears_nothing()
        at_coordinator.hears_a_sign()

        home = tmp_path / "agent-home"
        with Agent.local(
            coordinator.url, coordinator.token(), "berlin", data=rows, runs=[], home=home, environment=at_agent.environment
        ) as agent:
            at_agent.hears("READY=1")
            assert coordinator.stop() == 0
            at_coordinator.hears("STOPPING=1")
            at_agent.hears_a_sign()  # it waits for a coordinator that is away: so it should
            with stopped(agent.pid):
                at_agent.hears_nothing()
            at_agent.hears_a_sign()
            assert agent.stop() == 0
            at_agent.hears("STOPPING=1")
