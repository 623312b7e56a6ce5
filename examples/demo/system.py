"""Starts a coordinator and agents as a person would, and ends them whatever happens."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import psutil

from fedcybgd import Agent, Client, Coordinator

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class DemoFailed(Exception):
    """The demo did not come to its end; the message says why."""


class System:
    """Use as a context manager: whatever happens, no process is left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._processes: list[Coordinator | Agent] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_coordinator(self) -> Client:
        home, log = self.folder / "coordinator", self.folder / "coordinator.log"
        self.coordinator = self._stack.enter_context(Coordinator.local(home, log=log, environment=ENVIRONMENT))
        self._processes.append(self.coordinator)
        return self.coordinator.client

    def start_agent(self, name: str, data: Path, runs: Sequence[str], threads: int) -> None:
        agent = Agent.local(
            self.coordinator.url, self.coordinator.token(), name, data=data, runs=runs, home=self.folder / name,
            settings={"device": {"threads": threads}}, log=self.folder / f"{name}.log", environment=ENVIRONMENT,
        )  # fmt: skip
        self._processes.append(self._stack.enter_context(agent))

    def check(self) -> None:
        """Raise `ProcessEnded` if a process has ended."""
        for process in self._processes:
            process.check()

    def memory_of_web_process(self) -> int:
        """Resident bytes of the coordinator's web process."""
        return int(psutil.Process(self.coordinator.pid).memory_info().rss)
