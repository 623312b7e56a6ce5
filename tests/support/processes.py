"""Real processes, to be stopped, killed and started again, and waiting for what they do."""

import time
from pathlib import Path
from typing import Any

import psutil

from fedcybgd import Agent, Coordinator

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
NO_JOBS = {"lanes": "none"}
"""Settings of a coordinator that is never given a job: no engine of it imports torch."""


def start_agent(home: Path, name: str, coordinator: Coordinator, data: Path) -> Agent:
    """An agent that lets every run use its rows."""
    return Agent.local(
        coordinator.url, coordinator.token(), name, data=data, runs=["*"], home=home, settings={"device": {"threads": 1}},
        environment=ENVIRONMENT,
    )  # fmt: skip


def trainer(agent: Agent) -> psutil.Process | None:
    """Its training process."""
    return next(iter(psutil.Process(agent.pid).children()), None)


def wait_for(look: Any, limit: float = 60, every: float = 0.05) -> Any:
    """The first truthy value of `look()`."""
    until = time.monotonic() + limit
    while not (value := look()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(every)
    return value
