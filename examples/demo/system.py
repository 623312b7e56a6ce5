"""Starts a coordinator and agents as a person would: with the commands `fedcoord` and `fedagent`."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from fedcybgd import Client

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class DemoFailed(Exception):
    """Something did not come up; the message says where its log is."""


class System:
    """Use as a context manager: whatever happens, no process is left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = self.key = ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name, process in self._processes.items():
            if name != "coordinator":
                process.send_signal(signal.SIGTERM)
        for name, process in reversed(self._processes.items()):
            if name == "coordinator":
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()

    def start_coordinator(self) -> Client:
        log = self.folder / "fedcybgd.coordinator.log"
        self._start("coordinator", log, "fedcoord", "serve", "--home", str(self.folder / "coordinator"), "--port", "0")
        until = time.monotonic() + 120
        while "startup complete" not in (text := log.read_text()):
            self.check()
            if time.monotonic() > until:
                raise DemoFailed(f"the coordinator does not come up; see {log}")
            time.sleep(0.05)
        found = re.search(r"coordinator at (\S+),", text), re.search(r"FEDCOORD_OPERATOR_KEY=(\S+)", text)
        if found[0] is None or found[1] is None:
            raise DemoFailed(f"the coordinator printed no address or key; see {log}")
        self.url, self.key = found[0][1], found[1][1]
        return Client(self.url, self.key)

    def add_model(self, source: Path, name: str) -> None:
        self._command("fedcoord", "models", "add", str(source), "--name", name)

    def start_agent(self, client: Client, name: str, data: Path, runs: Sequence[str], threads: int) -> None:
        home = self.folder / name
        token = client.agents.token().token
        consent = [word for run in runs for word in ("--runs", run)]
        self._command("fedagent", "enroll", self.url, "--token", token, "--name", name, "--data", str(data), *consent, "--home", str(home))
        config = home / "agent.toml"
        config.write_text(re.sub(r"^threads = 0", f"threads = {threads}", config.read_text(), flags=re.MULTILINE))
        self._start(name, self.folder / f"{name}.log", "fedagent", "run", "--home", str(home))

    def check(self) -> None:
        """Raise `DemoFailed` if a process has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise DemoFailed(f"{name} ended with status {process.returncode}; see {self.folder / name}.log")

    def memory_of_web_process(self) -> int:
        """Resident bytes of the coordinator's web process."""
        import psutil

        return int(psutil.Process(self._processes["coordinator"].pid).memory_info().rss)

    def _start(self, name: str, log: Path, *command: str) -> None:
        with log.open("wb") as file:
            self._processes[name] = subprocess.Popen([str(BIN / command[0]), *command[1:]], stdout=file, stderr=file, env=ENVIRONMENT)

    def _command(self, *command: str) -> None:
        environment = {**ENVIRONMENT, "FEDCOORD_URL": self.url, "FEDCOORD_OPERATOR_KEY": self.key}
        done = subprocess.run([str(BIN / command[0]), *command[1:]], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise DemoFailed(f"{' '.join(command[:3])} failed: {done.stderr.strip() or done.stdout.strip()}")
