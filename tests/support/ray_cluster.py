"""A real Ray cluster of one node for tests. `make ray` installs Ray beside `.venv`; one cluster at a time is enough: it takes ten seconds and 1 GB."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
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
    return str(beside) if beside.exists() else shutil.which("ray")


class Cluster:
    """There for as long as the `with` block. `start` begins one anew at the same address after `kill`."""

    def __init__(self, cores: int = 2) -> None:
        self._cores, self._ports = cores, (free_port(), free_port(), free_port())
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets have long names
        self.url = f"ray://127.0.0.1:{self._ports[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        found = program()
        assert found is not None
        port, client, dashboard = map(str, self._ports)
        words = [
            found, "start", "--head", "--block", "--port", port, "--ray-client-server-port", client, "--num-cpus", str(self._cores), "--num-gpus", "0",
            "--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-port", dashboard, "--include-dashboard=false",
            "--object-store-memory", "100000000", "--disable-usage-stats", "--temp-dir", str(self.folder),
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        # Its processes are as important as others of these tests, and nobody else asks anything of it.
        more = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "FEDCOORD_HOME": str(self.folder / "home")}
        self._process = subprocess.Popen(
            words,
            env={**environment, **more},
            stdout=(self.folder / "start.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 90
        while b"Ray runtime started" not in (self.folder / "start.log").read_bytes():
            assert self._process.poll() is None, (self.folder / "start.log").read_text()
            assert time.monotonic() < deadline, "the cluster did not start"
            time.sleep(0.2)
        time.sleep(SETTLES_S)

    def processes(self) -> list[psutil.Process]:
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        """Those that are at a job of ours."""
        return [process for process in self.processes() if _title(process).startswith("ray::fedcoord")]

    def kill(self) -> None:
        if self._process is None:
            return
        for process in [*self.processes(), psutil.Process(self._process.pid)]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        self._process = None
        (self.folder / "start.log").write_bytes(b"")

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
