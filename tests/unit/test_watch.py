"""What counts as standing still: of a visit the owner's limit, of a process that starts another."""

import math

import pytest

from fedcybgd.agent.messages import TrainerEvent
from fedcybgd.agent.watch import SILENT_S, START_S, Watch
from fedcybgd.shared.contract.assignments import Progress

LEAST_S = 10.0
"""of `limits.stall_s`"""
WALLED, READY = TrainerEvent(event="walled"), TrainerEvent(event="ready")
FIRST_STEP = TrainerEvent(event="progress", visit="asg/1", progress=Progress(phase="training", step=1, steps=9))


class Watched:
    """A process that is watched by a clock that the test sets; a look every second, as the daemon has it."""

    def __init__(self, starting: bool, given_s: float | None = None, stall_s: float = LEAST_S) -> None:
        self.now = 0.0
        self.watch = Watch(stall_s, given_s, math.inf, starting, lambda: self.now)

    def goes_on(self, seconds: int, cpu_s: float | None = None) -> float | None:
        """What the first look says that finds it standing still. `cpu_s`: what it uses each second, and says every five."""
        for _ in range(seconds):
            self.now += 1
            if cpu_s is not None and self.now % 5 == 0:
                self.watch.heard(TrainerEvent(event="alive", cpu_s=cpu_s * self.now))
            if (found := self.watch.stalled()) is not None:
                return found
        return None


def test_a_start_is_no_standstill_though_it_takes_longer_than_a_step_may() -> None:
    process = Watched(starting=True)
    assert process.goes_on(30) is None, "an interpreter, from a disk that is cold"
    process.watch.heard(WALLED)
    assert process.goes_on(100, cpu_s=0.5) is None, "torch"
    process.watch.heard(READY)
    assert process.goes_on(10) is None, "from here on the owner's limit counts, and from here only"
    assert process.goes_on(1) == 11


def test_a_start_that_comes_to_nothing_ends() -> None:
    process = Watched(starting=True)
    process.watch.heard(WALLED)
    assert process.goes_on(2 * int(START_S), cpu_s=0.5) == START_S + 1
    silent = Watched(starting=True)
    assert silent.goes_on(2 * int(START_S)) == SILENT_S + 1


def test_an_owner_who_waits_longer_than_a_start_may_take_waits_as_long_for_a_start() -> None:
    process = Watched(starting=True, stall_s=2 * START_S)
    assert process.goes_on(2 * int(START_S), cpu_s=0.5) is None


def test_a_start_that_hangs_is_given_up_before_the_coordinator_takes_the_visit_back() -> None:
    assert Watched(starting=True, given_s=60).goes_on(60) == 46


@pytest.mark.parametrize("said", [READY, FIRST_STEP])
def test_what_the_process_can_say_only_after_its_start_ends_it(said: TrainerEvent) -> None:
    process = Watched(starting=True)
    process.watch.heard(said)
    assert not process.watch.starting
    assert process.goes_on(30, cpu_s=0.5) == 11


def test_a_process_that_was_kept_warm_has_no_start() -> None:
    assert Watched(starting=False).goes_on(30, cpu_s=0.5) == 11
