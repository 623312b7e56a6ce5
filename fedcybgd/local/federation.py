"""A coordinator and agents of one machine, as real processes that are ended together."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from fedcybgd.client.client import Client
from fedcybgd.local.agent import Agent
from fedcybgd.local.coordinator import Coordinator
from fedcybgd.local.toml import Value

TOGETHER = 8
"""Processes that are asked to stop at the same time"""


class Federation:
    """Everything of it lies in one folder. Use it as a context manager: whatever happens, no process is left behind."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """Nothing is started yet; `environment` is what processes get beside that of the program."""
        self.folder = folder
        self.agents: dict[str, Agent] = {}
        self.away: set[str] = set()
        """names of agents that are not there on purpose"""
        self._environment = environment
        self._coordinator: Coordinator | None = None

    @property
    def coordinator(self) -> Coordinator:
        assert self._coordinator is not None, "start_coordinator comes first"
        return self._coordinator

    def start_coordinator(self) -> Client:
        """On a free port of this machine. Raises as `Coordinator.local` does."""
        home, log = self.folder / "coordinator", self.folder / "coordinator.log"
        self._coordinator = Coordinator.local(home, log=log, environment=self._environment)
        return self._coordinator.client

    def start_agent(
        self, name: str, data: Path, runs: Sequence[str], threads: int, images: Path | None = None, tell_labels: bool = False
    ) -> Agent:
        """Raises as `Agent.local` does."""
        device: Mapping[str, Mapping[str, Value]] = {"device": {"threads": threads}}
        agent = Agent.local(
            self.coordinator.url, self.coordinator.token(), name, data=data, runs=runs, images=images, tell_labels=tell_labels, home=self.folder / name,
            settings=device, log=self.folder / f"{name}.log", environment=self._environment,
        )  # fmt: skip
        self.agents[name] = agent
        return agent

    def check(self) -> None:
        """Raise `ProcessEnded` if a process has ended that should be there."""
        self.coordinator.check()
        for name, agent in self.agents.items():
            if name not in self.away:
                agent.check()

    def stop(self) -> None:
        """End all of them, the agents first; a second Ctrl-C meanwhile kills them."""
        running = [agent for agent in self.agents.values() if agent.running]
        try:
            with ThreadPoolExecutor(TOGETHER) as pool:
                list(pool.map(Agent.stop, running))
            if self._coordinator is not None and self._coordinator.running:
                self._coordinator.stop()
        finally:
            for agent in running:
                if agent.running:
                    agent.kill()
            if self._coordinator is not None and self._coordinator.running:
                self._coordinator.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
