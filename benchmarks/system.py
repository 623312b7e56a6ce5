"""A whole system as real processes: `fedcoord serve` with its engine, and `fedagent run` with its trainer."""

import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from fedcybgd import Agent, Coordinator
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.contract.views import AssignmentView, RunView

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Of every process that is measured, on both sides of every comparison."""
UNSEEN = Path(__file__).with_name("unseen")
"""First on its path, this takes metrics and events from a process"""
IDLE_S = 1.0
IDLE_CPU_S, SEVERAL_IDLE_CPU_S = 0.04, 0.06
"""Of one coordinator, and of each of several: those look around more, on another database."""


class System:
    """Use as a context manager; all its processes are warm and idle once it is entered, and gone after it."""

    def __init__(
        self, folder: Path, partitions: Mapping[str, Path], coordinators: int = 1, unseen: bool = False, **settings: str | float | Path
    ) -> None:
        """`partitions`: the rows of each agent, by its name; `settings`: of every coordinator, as `Coordinator.local` takes them. `unseen`: none of
        its processes counts anything for metrics, or writes events down."""
        path = os.pathsep.join(filter(None, [str(UNSEEN), os.environ.get("PYTHONPATH")]))
        self._environment = ENVIRONMENT | ({"PYTHONPATH": path} if unseen else {})
        self._folder, self._partitions = folder, partitions
        self._number, self._settings = coordinators, settings
        self._stack = ExitStack()
        self._agents: list[Agent] = []
        self.home = folder / "coordinator"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self.coordinators = [stack.enter_context(self._coordinator(number)) for number in range(self._number)]
            self.coordinator = self.coordinators[0]
            self.client, self.url = self.coordinator.client, self.coordinator.url
            self.webs = [psutil.Process(one.pid) for one in self.coordinators]
            self.web = self.webs[0]
            for name, data in self._partitions.items():
                agent = Agent.local(
                    self.url, self.coordinator.token(), name, data=data, runs=["*"], home=self._folder / name,
                    settings={"device": {"threads": 1}}, log=self._folder / f"{name}.log", environment=self._environment,
                )  # fmt: skip
                self._agents.append(stack.enter_context(agent))
            self.wait_until_idle()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _coordinator(self, number: int) -> Coordinator:
        home = self._folder / f"coordinator-{number}" if number else self.home
        return Coordinator.local(home, log=home.with_suffix(".log"), environment=self._environment, **self._settings)

    def cpu_seconds(self) -> Counter[str]:
        """CPU time of all processes so far, by what they are: web, engine, daemons, trainers."""
        found: Counter[str] = Counter()
        for parent, child, pids in (("web", "engine", self.coordinators), ("daemons", "trainers", self._agents)):
            for process in (psutil.Process(one.pid) for one in pids):
                found[parent] += cpu_of(process)
                found[child] += sum(cpu_of(one) for one in process.children(recursive=True))
        return found

    def web_memory_peak(self) -> int:
        """The most bytes that the web process ever held."""
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.web.pid}/status").read_text())
        assert peak
        return int(peak[1]) * 1024

    def wait_until_idle(self) -> None:
        """Return once nothing has used the processor for a second: everything is imported, everything is done."""
        most = IDLE_CPU_S if self._number == 1 else SEVERAL_IDLE_CPU_S * self._number
        for _ in range(180):
            before = self.cpu_seconds().total()
            time.sleep(IDLE_S)
            if self.cpu_seconds().total() - before <= most:
                return
        raise TimeoutError("the system does not come to rest")

    def add_model(self, name: str, source: Path) -> None:
        self.client.models.add(source, name)

    def create_run(self, spec: Mapping[str, object]) -> str:
        """The id of a prepared run."""
        return self.client.runs.create(spec).id

    def start(self, run_id: str) -> float:
        """Start a run; returns the time of the request."""
        at = time.time()
        self.client.runs.start(run_id)
        return at

    def wait_for(self, run_id: str) -> RunView:
        """A run that has completed."""
        return self.client.runs.wait(run_id, lambda run: run.state == "completed", every_s=1)

    def visits(self, run_id: str) -> list[tuple[AssignmentView, TrainMetrics]]:
        """The visits of a run, each with what it reported."""
        return [(visit, visit.metrics) for visit in self.client.runs.assignments(run_id) if visit.metrics is not None]


def cpu_of(process: psutil.Process) -> float:
    """Its own processor seconds so far."""
    times = process.cpu_times()
    return float(times.user + times.system)
