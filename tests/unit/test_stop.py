"""A signal ends what only waits at once; what does something is told, and comes to its end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from fedcybgd.agent.errors import StopRequested
from fedcybgd.agent.stop import Stop


@pytest.fixture
def told() -> Iterator[list[int]]:
    """Filled when somebody who works is told; handlers are as before afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield []
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def stop(told: list[int]) -> Stop:
    made = Stop(lambda: told.append(1))
    made.listen()
    return made


def asked_soon(number: int = signal.SIGTERM) -> None:
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_wait_ends_at_once(stop: Stop, told: list[int], number: int) -> None:
    asked_soon(number)
    began = time.monotonic()
    with pytest.raises(StopRequested):
        stop.pause(30)
    assert time.monotonic() - began < 10
    assert (stop.asked, told) == (True, [])


def test_work_is_told_and_goes_on(stop: Stop, told: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert (stop.asked, told) == (True, [1])
    with pytest.raises(StopRequested):
        stop.pause(30)  # the next wait is none


def test_a_wait_inside_a_wait_leaves_the_outer_one_a_wait(stop: Stop, told: list[int]) -> None:
    def waits_twice() -> None:
        with stop.waiting():
            stop.pause(0)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StopRequested):
        waits_twice()
    assert told == []


def test_after_a_wait_work_is_work(stop: Stop, told: list[int]) -> None:
    stop.pause(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert told == [1]


def test_who_asks_twice_does_not_wait_for_anything() -> None:
    program = (
        "import os, signal; from fedcybgd.agent.stop import Stop; s = Stop(lambda: None); s.listen(); "
        "os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM); print('never')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")
