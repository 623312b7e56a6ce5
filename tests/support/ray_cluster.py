"""A real Ray cluster of this machine for tests. `make ray` installs Ray beside `.venv`; one cluster at a time is enough: it takes ten seconds and 1 GB."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.s3_server import free_port

SETTLES_S = 8.0
"""Until it lets clients in: who comes before that is refused half a minute later."""
SECRETS = ("FEDCOORD_DATABASE_URL", "FEDCOORD_OPERATOR_KEY")


def program() -> str | None:
    """Ray's own command, of the Python that runs the tests."""
    beside = Path(sys.executable).with_name("ray")
    return str(beside) if beside.exists() else None


class Node:
    """A machine of the cluster, and all its processes."""

    def __init__(self, words: list[str], folder: Path, started: bytes) -> None:
        found, log = program(), folder / f"start-{uuid.uuid4().hex}.log"
        assert found is not None
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        # Its processes are as important as others of these tests, and nobody else asks anything of it.
        more = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "FEDCOORD_HOME": str(folder / "home")}
        words = [found, "start", "--block", "--num-gpus", "0", "--min-worker-port", "0", "--max-worker-port", "0", "--object-store-memory",
                 "100000000", "--disable-usage-stats", *words]  # fmt: skip
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                words, env={**environment, **more}, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + 90
        while started not in log.read_bytes():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the node did not start"
            time.sleep(0.2)

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []

    def kill(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self._process.kill()
        self._process.wait()


class Cluster:
    """There for as long as the `with` block. `start` begins one anew at the same address after `kill`."""

    def __init__(self, cores: int = 2) -> None:
        self._cores, self._ports = cores, (free_port(), free_port(), free_port())
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets have long names
        self.url = f"ray://127.0.0.1:{self._ports[1]}"
        self._nodes: list[Node] = []

    def start(self) -> None:
        port, client, dashboard = map(str, self._ports)
        words = [
            "--head", "--port", port, "--ray-client-server-port", client, "--num-cpus", str(self._cores), "--dashboard-port", dashboard,
            "--include-dashboard=false", "--temp-dir", str(self.folder),
        ]  # fmt: skip
        self._nodes.append(Node(words, self.folder, b"Ray runtime started"))
        time.sleep(SETTLES_S)

    def add(self, cores: int) -> Node:
        """One more, on this machine too."""
        words = ["--address", f"127.0.0.1:{self._ports[0]}", "--num-cpus", str(cores)]
        self._nodes.append(Node(words, self.folder, b"Ray runtime started"))
        return self._nodes[-1]

    def processes(self) -> list[psutil.Process]:
        return [process for node in self._nodes for process in node.processes()]

    def workers(self) -> list[psutil.Process]:
        """Those that are at a job of ours."""
        return [process for process in self.processes() if _title(process).startswith("ray::fedcoord")]

    def kill(self) -> None:
        while self._nodes:
            self._nodes.pop().kill()

    def said(self) -> bytes:
        """All that it has written down about itself."""
        return b"".join(path.read_bytes() for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size < 50_000_000)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
