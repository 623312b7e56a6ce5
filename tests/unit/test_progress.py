"""Whether an attempt gets on, and for how long it may not: the rules alone."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fedcybgd.coordinator.domain.progress import Attempt
from fedcybgd.coordinator.planning import duration
from fedcybgd.coordinator.planning.duration import Pace, Work
from fedcybgd.shared.contract.assignments import Progress, Trouble

THEN = datetime(2030, 1, 1, tzinfo=UTC)
SMALL = Work(parameters=10_000_000, tokens=2048, steps=20, bytes=40_000_000)
LARGE = Work(parameters=7_000_000_000, tokens=4096, steps=100, bytes=20_000_000_000)


def said(phase: Any = "training", **more: Any) -> Progress:
    return Progress(phase=phase, **more)


@pytest.mark.parametrize(
    ("before", "now", "on"),
    [
        (None, None, False),
        (None, said("fetching"), True),
        (said(step=3), None, False),
        (said(step=3), said(step=3), False),
        (said(step=3, loss=1.0), said(step=3, loss=0.5, tokens_per_s=9), False),
        (said(step=3), said(step=4), True),
        (said("loading", moved=5), said("loading", moved=5), False),
        (said("loading", moved=5), said("loading", moved=6), True),
        (said("fetching", moved=5), said("loading", moved=5), True),
        (said("fetching"), said("fetching"), True),
        (said("sending", moved=5), said("sending", moved=5, trouble=Trouble(code="unreachable")), True),
    ],
)
def test_a_renewal_alone_is_no_progress(before: Progress | None, now: Progress | None, on: bool) -> None:
    assert Attempt(THEN, THEN, 60, None, before).got_on(now) is on


def attempt(progress: Progress | None = said(step=3)) -> Attempt:
    return Attempt(THEN, THEN + timedelta(seconds=100), 60, THEN + timedelta(seconds=1000), progress)


@pytest.mark.parametrize(("at", "over"), [(0, None), (159, None), (160, "no_progress"), (999, "no_progress"), (1000, "visit_too_long")])
def test_when_it_is_over_without_progress(at: int, over: str | None) -> None:
    found = attempt().over(said(step=3), THEN + timedelta(seconds=at))
    assert (found[0] if found else None) == over


def test_progress_helps_until_it_has_taken_too_long() -> None:
    assert attempt().over(said(step=4), THEN + timedelta(seconds=999)) is None
    found = attempt().over(said(step=4), THEN + timedelta(seconds=1000))
    assert found is not None
    assert "1000 s" in found[1]


def test_why_names_where_it_stands_still() -> None:
    found = attempt(said(step=16, steps=100)).over(None, THEN + timedelta(seconds=200))
    assert found is not None
    assert "no progress for 100 s in phase training, step 16 of 100" in found[1]


def test_of_attempts_from_before_nothing_is_known() -> None:
    assert Attempt(None, None, None, None, None).over(None, THEN) is None


def test_patience_is_a_minute_for_what_is_quick_and_more_for_what_is_large_or_slow() -> None:
    assert duration.patience_s(SMALL, "cuda", None) == 60
    assert duration.patience_s(SMALL, "cpu", Pace(step_s=2, visit_s=50)) == 60
    assert duration.patience_s(SMALL, "cpu", Pace(step_s=30, visit_s=700)) == 302
    assert duration.patience_s(LARGE, "cpu", None) == 1800
    assert 1000 < duration.patience_s(LARGE, "cuda", None) < 1800
    assert duration.patience_s(SMALL, "a device of next year", None) == duration.patience_s(SMALL, "cpu", None)
    assert duration.patience_s(LARGE, "cpu", Pace(step_s=1e300, visit_s=1e300)) == 1800


def test_an_attempt_may_take_an_hour_or_ten_times_what_the_agent_took_lately() -> None:
    assert duration.life_s(SMALL, "cuda", 0, None) == 3600
    assert duration.life_s(SMALL, "cpu", 0, Pace(1, 7200)) == 72_000
    assert duration.life_s(LARGE, "cuda", 0, None) > 20_000_000_000 / 50e3
    assert duration.life_s(LARGE, "cuda", 10**9, None) < 100_000
    assert duration.life_s(LARGE, "cpu", 1, Pace(1e300, 1e300)) == 7 * 86_400
