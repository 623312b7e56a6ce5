"""An absence is told from a delay, a sleep from a clock that was set."""

from datetime import UTC, datetime, timedelta

import pytest

from fedcybgd.coordinator.domain.absence import Moment, lost_between

BEFORE = Moment(datetime(2025, 3, 1, 12, tzinfo=UTC), 1000.0)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


def after(ran: float, passed: timedelta | None = None) -> Moment:
    return Moment(BEFORE.wall + (timedelta(seconds=ran) if passed is None else passed), BEFORE.elapsed + ran)


@pytest.mark.parametrize(
    ("now", "lost"),
    [
        (after(0.01), None),
        (after(1), None),
        (after(2.9), None),
        (after(1, timedelta(seconds=2.5)), None),  # a clock that is corrected
        (after(16), 15 * SECOND),  # stopped, or asleep
        (after(1, DAY + SECOND), DAY),  # set ahead
        (after(1, SECOND - DAY), -DAY),  # set back
        (after(0.2, DAY + 0.2 * SECOND), DAY),
        (after(600, SECOND), timedelta()),  # asleep for ten minutes, and the clock was not told
        (after(600, DAY), DAY - SECOND),
    ],
)
def test_what_was_lost_is_what_the_clock_went_on_without_us(now: Moment, lost: timedelta | None) -> None:
    assert lost_between(BEFORE, now, SECOND) == lost


def test_waits_are_as_long_afterwards_as_they_were_before() -> None:
    waiting_since = BEFORE.wall - timedelta(seconds=30)
    for now in (after(16), after(1, DAY), after(1, -DAY)):
        lost = lost_between(BEFORE, now, SECOND)
        assert lost is not None
        assert timedelta(seconds=30) <= now.wall - (waiting_since + lost) <= timedelta(seconds=31)
