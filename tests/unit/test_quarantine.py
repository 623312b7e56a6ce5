"""Failures count by visit and agent: the rules alone."""

import itertools
from datetime import timedelta
from typing import get_args

import pytest

from fedcybgd.coordinator.domain import quarantine
from fedcybgd.coordinator.domain.assignment import TakenBack, is_held_against
from fedcybgd.shared.contract.assignments import LASTING_REASONS, ReturnReason


@pytest.mark.parametrize(("failed", "over"), [({}, set()), ({"a": 1}, set()), ({"a": 2, "b": 1}, {"a"}), ({"a": 3, "b": 2}, {"a", "b"})])
def test_who_has_failed_twice_at_a_visit_is_passed_over(failed: dict[str, int], over: set[str]) -> None:
    assert quarantine.passed_over(failed) == over


def strikes(on_probation: bool, gave_up: bool) -> list[int]:
    return [times for times in range(1, 9) if quarantine.is_strike(times, on_probation, gave_up)]


def test_a_visit_is_one_strike_however_often_an_agent_fails_at_it() -> None:
    assert strikes(on_probation=False, gave_up=False) == [2]
    assert strikes(on_probation=True, gave_up=False) == [1], "who comes from quarantine has one try"


def test_who_takes_work_and_gives_it_back_again_and_again_is_struck_again_and_again() -> None:
    assert strikes(on_probation=False, gave_up=True) == [2, 4, 6, 8]


def test_a_quarantine_lasts_twice_as_long_as_the_one_before_up_to_a_limit() -> None:
    lengths = [quarantine.lasts(before) for before in range(100)]
    assert lengths[0] == timedelta(minutes=1)
    assert all(second == min(2 * first, timedelta(hours=6)) for first, second in itertools.pairwise(lengths))
    assert lengths[-1] == timedelta(hours=6)


def test_what_is_held_against_an_agent() -> None:
    against = {reason for reason in (*get_args(ReturnReason), *TakenBack) if is_held_against(reason)}
    assert against == {
        "stopping", "disk_full", "shard_corrupt", "trainer_died", "stalled", "bug", "disk_unwritable", "other", "lease_lapsed", "wave_deadline",
        "no_progress", "visit_too_long",
    }  # fmt: skip
    assert not against & LASTING_REASONS, "it says itself that it never can: it is not asked again anyway"
