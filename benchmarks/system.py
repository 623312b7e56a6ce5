"""A whole system as real processes: `fedcoord serve` with its engine, and `fedagent run` with its trainer."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from fedcybgd.client.connection import Connection

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Of every process that is measured, on both sides of every comparison."""
IDLE_S = 1.0
IDLE_CPU_S = 0.02


class System:
    """Use as a context manager; all its processes are warm and idle once it is entered, and gone after it."""

    def __init__(self, folder: Path, partitions: Mapping[str, Path]) -> None:
        """`partitions`: the rows of each agent, by its name."""
        self._folder, self._partitions = folder, partitions
        self._started: list[subprocess.Popen[bytes]] = []
        self.home = folder / "coordinator"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start_coordinator()
            for name, data in self._partitions.items():
                self._start_agent(name, data)
            self.wait_until_idle()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def _start_coordinator(self) -> None:
        log = self._folder / "fedcybgd.coordinator.log"
        command = [sys.executable, "-m", "fedcybgd.coordinator.cli", "serve", "--home", str(self.home), "--port", "0"]
        process = self._spawn(command, log)
        self.web = psutil.Process(process.pid)
        until = time.monotonic() + 60
        while "Application startup complete" not in (text := log.read_text()):
            assert process.poll() is None, f"the coordinator ended: {text}"
            assert time.monotonic() < until, f"the coordinator does not start: {text}"
            time.sleep(0.05)
        url, key = re.search(r"coordinator at (http://\S+?:\d+)", text), re.search(r"FEDCOORD_OPERATOR_KEY=(\S+)", text)
        assert url, text
        assert key, text
        self.url = url[1]
        self.operator: Any = Connection(self.url, key[1])

    def _start_agent(self, name: str, data: Path) -> None:
        home = self._folder / name
        token = self.operator.post("/enrolment-tokens", {})["token"]
        agent = [sys.executable, "-m", "fedcybgd.agent.cli"]
        command = [*agent, "enroll", self.url, "--token", token, "--name", name, "--data", str(data), "--runs", "*", "--home", str(home)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **ENVIRONMENT})
        settings = home / "agent.toml"
        text = settings.read_text()
        assert "threads = 0 " in text
        settings.write_text(text.replace("threads = 0 ", "threads = 1 "))
        self._spawn([*agent, "run", "--home", str(home)], self._folder / f"{name}.log")

    def _spawn(self, command: list[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **ENVIRONMENT})
        self._started.append(process)
        return process

    def _stop(self) -> None:
        for process in reversed(self._started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._started):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    def cpu_seconds(self) -> Counter[str]:
        """CPU time of all processes so far, by what they are: web, engine, daemons, trainers."""
        found: Counter[str] = Counter()
        for i, started in enumerate(self._started):
            process = psutil.Process(started.pid)
            found["daemons" if i else "web"] += _cpu(process)
            found["trainers" if i else "engine"] += sum(_cpu(child) for child in process.children(recursive=True))
        return found

    def web_memory_peak(self) -> int:
        """The most bytes that the web process ever held."""
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.web.pid}/status").read_text())
        assert peak
        return int(peak[1]) * 1024

    def wait_until_idle(self) -> None:
        """Return once nothing has used the processor for a second: everything is imported, everything is done."""
        for _ in range(180):
            before = self.cpu_seconds().total()
            time.sleep(IDLE_S)
            if self.cpu_seconds().total() - before <= IDLE_CPU_S:
                return
        raise TimeoutError("the system does not come to rest")

    def add_model(self, name: str, source: Path) -> None:
        self.operator.post("/models", {"name": name, "source": str(source)})
        model = self.operator.wait(lambda: self.operator.get(f"/models/{name}"), lambda m: m["state"] != "adding")
        assert model["state"] == "ready", model["reason"]

    def create_run(self, spec: Mapping[str, Any]) -> str:
        """The id of a prepared run."""
        run_id: str = self.operator.post("/runs", dict(spec))["id"]
        run = self.operator.wait(lambda: self.operator.get(f"/runs/{run_id}"), lambda r: r["prepared"] or r["state"] == "failed")
        assert run["prepared"], run["reason"]
        return run_id

    def start(self, run_id: str) -> float:
        """Start a run; returns the time of the request."""
        at = time.time()
        self.operator.post(f"/runs/{run_id}/start")
        return at

    def wait_for(self, run_id: str) -> Any:
        """The view of a run that has completed."""
        run = self.operator.wait(lambda: self.operator.get(f"/runs/{run_id}"), lambda r: r["state"] != "running", every=1)
        assert run["state"] == "completed", f"{run['state']}: {run['reason']}"
        return run

    def assignments(self, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.operator.every(f"/runs/{run_id}/assignments")
        return found


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
