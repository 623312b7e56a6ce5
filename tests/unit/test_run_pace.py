"""What is foretold of a run, and of one that stands still: nothing."""

from datetime import UTC, datetime, timedelta

import pytest

from fedcybgd.coordinator.domain.run_pace import pace

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
Opened = list[tuple[datetime, datetime | None]]


def rounds(*took_s: float, open_for_s: float | None = None) -> Opened:
    """The newest first: one that is open for so long, and before it closed ones that took so long."""
    found: Opened = []
    at = NOW if open_for_s is None else NOW - timedelta(seconds=open_for_s)
    if open_for_s is not None:
        found.append((at, None))
    for took in took_s:
        found.append((at - timedelta(seconds=took), at))
        at -= timedelta(seconds=took)
    return found


def test_what_is_left_goes_by_the_last_rounds() -> None:
    said = pace("running", None, rounds(60, 60, 60, 600, open_for_s=20), left=10, now=NOW)
    assert (said.round_s, said.quiet_s, said.still) == (60, 20, None)
    assert said.seconds_left == 10 * 60 - 20


def test_before_the_first_round_is_closed_nothing_is_known() -> None:
    said = pace("running", None, rounds(open_for_s=5000), left=10, now=NOW)
    assert (said.round_s, said.seconds_left, said.still) == (None, None, None)


@pytest.mark.parametrize(("round_s", "quiet_s", "is_still"), [(60, 200, False), (60, 241, True), (1, 100, False), (1, 121, True)])
def test_a_run_that_closes_no_round_stands_still(round_s: float, quiet_s: float, is_still: bool) -> None:
    said = pace("running", None, rounds(*[round_s] * 5, open_for_s=quiet_s), left=10, now=NOW)
    assert (said.still is not None) == is_still
    assert (said.seconds_left is None) == is_still


@pytest.mark.parametrize(
    ("state", "reason", "still"),
    [
        ("running", "waits for lyon until noon", "waits for lyon until noon"),
        ("paused", "nobody is left", "nobody is left"),
        ("paused", None, "it is paused"),
        ("completed", "done", None),
        ("draft", None, None),
    ],
)
def test_who_waits_or_is_paused_is_told_no_time(state: str, reason: str | None, still: str | None) -> None:
    said = pace(state, reason, rounds(60, 60, open_for_s=10), left=10, now=NOW)
    assert (said.seconds_left, said.still) == (None, still)
