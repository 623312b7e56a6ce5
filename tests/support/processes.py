"""Coordinators and agents as real processes, to be stopped, killed and started again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from fedcybgd.agent.client import Client
from fedcybgd.client.connection import Connection

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


class CoordinatorProcess:
    def __init__(self, home: Path, database_url: str | None = None) -> None:
        self.home, self._database_url = home, database_url
        self.port, self.key, self.url = 0, "", ""
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home.with_suffix(".log")

    def start(self) -> "CoordinatorProcess":
        """Start, or start again at the same port and home."""
        command = [sys.executable, "-m", "fedcybgd.coordinator.cli", "serve", "--home", str(self.home), "--port", str(self.port)]
        if self._database_url:
            command += ["--database-url", self._database_url]
        already = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT})
        until = time.monotonic() + 60
        while "Application startup complete" not in (text := self.log.read_bytes()[already:].decode()):
            assert self.process.poll() is None, f"the coordinator ended: {text}"
            assert time.monotonic() < until, f"the coordinator does not start: {text}"
            time.sleep(0.05)
        found = re.search(r"coordinator at (https?://[\w.]+:(\d+))", text)
        assert found, text
        self.url, self.port = found[1], int(found[2])
        if key := re.search(r"FEDCOORD_OPERATOR_KEY=(\S+)", text):
            self.key = key[1]
        return self

    @property
    def operator(self) -> Connection:
        return Connection(self.url, self.key)

    def kill(self) -> None:
        """SIGKILL the web process; its children must notice by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def token(self) -> str:
        token: str = self.operator.post("/enrolment-tokens", {})["token"]
        return token


class AgentProcess:
    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name = home, name
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home.with_suffix(".log")

    def enrol(self, coordinator: CoordinatorProcess, data: Path, settings: str = "") -> "AgentProcess":
        command = [sys.executable, "-m", "fedcybgd.agent.cli", "enroll", coordinator.url, "--token", coordinator.token()]
        command += ["--name", self.name, "--data", str(data), "--runs", "*", "--home", str(self.home)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **ENVIRONMENT})
        config = self.home / "agent.toml"
        config.write_text(config.read_text().replace("threads = 0 ", "threads = 1 ") + settings)
        return self

    def start(self) -> "AgentProcess":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedcybgd.agent.cli", "run", "--home", str(self.home)],
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT},
            )
        return self

    def client(self, coordinator: CoordinatorProcess) -> Client:
        import json

        return Client(coordinator.url, json.loads((self.home / "credentials.json").read_text())["key"])

    def trainer(self) -> psutil.Process | None:
        assert self.process is not None
        return next(iter(psutil.Process(self.process.pid).children()), None)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def wait_for(look: Any, limit: float = 60, every: float = 0.05) -> Any:
    """The first truthy value of `look()`."""
    until = time.monotonic() + limit
    while not (value := look()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(every)
    return value
