"""Coordinators that a program starts: they end with it, go on where they were, and say why they do not start."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedcybgd import Coordinator, FedError
from fedcybgd.local.errors import NotStarted, ProcessEnded
from tests.support.processes import ENVIRONMENT, NO_JOBS, wait_for

PROGRAM = """
import sys, time
from fedcybgd import Coordinator
c = Coordinator.local(sys.argv[1], lanes='none')
print(c.pid, c.url, flush=True)
time.sleep(600)
"""


def test_it_ends_with_a_program_that_is_killed_and_goes_on_in_the_next(tmp_path: Path) -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / "home")], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    pid, url = program.stdout.readline().split()
    coordinator = psutil.Process(int(pid))
    program.send_signal(signal.SIGKILL)
    program.wait()
    program.stdout.close()
    wait_for(lambda: not coordinator.is_running() or coordinator.status() == psutil.STATUS_ZOMBIE, limit=90)

    with Coordinator.local(tmp_path / "home", int(url.rsplit(":", 1)[1]), environment=ENVIRONMENT, **NO_JOBS) as again:
        assert again.url == url
        assert again.client.status().runs == []  # under the key that the first one was given
        assert (again.home / "operator.key").stat().st_mode & 0o077 == 0
        for code, home, port in (("home_taken", again.home, 0), ("cannot_listen", tmp_path / "other", int(url.rsplit(":", 1)[1]))):
            with pytest.raises(NotStarted) as refused:
                Coordinator.local(home, port, **NO_JOBS)
            assert refused.value.code == code
            assert refused.value.message in refused.value.log
        assert again.kill() == -signal.SIGKILL
        with pytest.raises(ProcessEnded):
            again.check()
        again.start()
        assert again.client.health().status == "ok"
        assert again.stop() == 0
    assert again.home.exists()


def test_a_request_that_hangs_while_it_stops_is_cut_without_a_traceback(tmp_path: Path) -> None:
    with Coordinator.local(tmp_path / "home", environment=ENVIRONMENT, **NO_JOBS) as coordinator:
        host, port = coordinator.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as hanging:
            head = f"PUT /v1/held-out/{'0' * 64}?name=x.jsonl HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {coordinator.key}\r\nContent-Length: 9\r\n\r\n{{"
            hanging.sendall(head.encode())
            time.sleep(1)
            assert coordinator.stop() == 0
            said = coordinator.log.read_text()
    assert "Cancel 1 running task" in said
    assert "Traceback" not in said


def test_a_key_that_nobody_told_is_asked_for(tmp_path: Path) -> None:
    with Coordinator.local(tmp_path / "home", environment=ENVIRONMENT, **NO_JOBS) as first:
        key = first.key
        (first.home / "operator.key").unlink()
        first.stop()
        with Coordinator.local(tmp_path / "home", **NO_JOBS) as second:
            with pytest.raises(FedError) as unknown:
                second.token()
            assert unknown.value.code == "operator_key_unknown"
            assert "home/operator.key;" in unknown.value.message, "where the first key is written"
        with Coordinator.local(tmp_path / "home", key=key, **NO_JOBS) as third:
            assert third.token().startswith("fct_")


def test_what_the_program_does_not_say_is_not_taken_from_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's coordinator never opens the database that a person's shell names."""
    monkeypatch.setenv("FEDCOORD_DATABASE_URL", f"sqlite:///{tmp_path / 'precious.db'}")
    with pytest.raises(FedError) as wrong:
        Coordinator.local(tmp_path / "home", threads=1)
    assert wrong.value.code == "settings_invalid"
    assert "FEDCOORD_THREADS" in wrong.value.message
    with Coordinator.local(tmp_path / "home", log_level="WARNING", **NO_JOBS):
        assert not (tmp_path / "precious.db").exists()
        assert (tmp_path / "home" / "coordinator.db").exists()
