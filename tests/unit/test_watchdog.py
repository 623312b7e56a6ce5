"""What systemd is told, and how often."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedcybgd.shared.host.watchdog import Watchdog


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """As systemd has one; `getsockname` is where it listens."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify") if request.param == "path" else f"\0fedcybgd-{os.getpid()}")
    listening.settimeout(0)
    yield listening
    listening.close()


def address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else "@" + name[1:].decode()


def heard(listener: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listener.recv(100).decode())
        except BlockingIOError:
            return found


def test_it_is_ready_once_and_gives_a_sign_four_times_in_its_time(listener: socket.socket) -> None:
    now = 100.0
    watchdog = Watchdog(address(listener), 8, clock=lambda: now)
    watchdog.ready()
    watchdog.ready()
    assert heard(listener) == ["READY=1"]
    for _ in range(17):  # eight seconds, the first and the last moment included
        watchdog.alive()
        now += 0.5
    assert heard(listener) == ["WATCHDOG=1"] * 5
    watchdog.stopping()
    assert heard(listener) == ["STOPPING=1"]


def test_what_it_starts_does_not_speak_for_it(listener: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": address(listener), "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    watchdog = Watchdog.of(environment)
    assert environment == {"HOME": "/"}
    watchdog.alive()
    assert heard(listener) == ["WATCHDOG=1"]


@pytest.mark.parametrize("counted", [{}, {"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
def test_no_sign_is_given_where_none_is_counted(counted: dict[str, str], listener: socket.socket) -> None:
    watchdog = Watchdog.of({"NOTIFY_SOCKET": address(listener), **counted})
    watchdog.alive()
    watchdog.ready()
    assert heard(listener) == ["READY=1"]


def test_nobody_who_listens_is_no_trouble(tmp_path: Path) -> None:
    for watchdog in (Watchdog(), Watchdog.of({}), Watchdog(str(tmp_path / "nobody"), 1)):
        watchdog.ready()
        watchdog.alive()
        watchdog.stopping()
        assert not list(tmp_path.iterdir())
