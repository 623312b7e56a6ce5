"""The phases of a visit, by the coordinator's clock."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fedcybgd.coordinator.domain.timeline import VisitPhases
from fedcybgd.shared.contract.training import TrainMetrics

T = datetime(2026, 5, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T + timedelta(seconds=seconds)


DONE = VisitPhases("accepted", at(0), at(10), at(60), at(62), training=False, started_at=at(15), trained_s=40)


def told(visit: VisitPhases) -> list[tuple[str, float, float | None]]:
    return [(p.kind, (p.begins - T).total_seconds(), None if p.ends is None else (p.ends - T).total_seconds()) for p in visit.all()]


def test_a_visit_that_is_done_has_all_phases() -> None:
    assert told(DONE) == [("waiting", 0, 10), ("transfer", 10, 15), ("training", 15, 55), ("transfer", 55, 60), ("judging", 60, 62)]


@pytest.mark.parametrize("started_at", [None, at(-9000), at(9000), at(58)])
def test_a_clock_that_is_wrong_moves_nothing_out_of_the_lease(started_at: datetime | None) -> None:
    assert told(replace(DONE, started_at=started_at)) == [
        ("waiting", 0, 10),
        ("transfer", 10, 20),
        ("training", 20, 60),
        ("judging", 60, 62),
    ]


def test_a_time_without_a_zone_is_one_of_utc() -> None:
    said = {"steps": 1, "rows": 1, "tokens": 1, "loss_first": 1, "loss_last": 1, "seconds": 1, "tokens_per_s": 1}
    metrics = TrainMetrics.model_validate_json(json.dumps(said | {"started_at": "2026-11-26T10:00:00"}))
    assert metrics.started_at == datetime(2026, 11, 26, 10, tzinfo=UTC)


def test_whoever_says_to_have_trained_for_longer_than_the_lease_trained_that_long() -> None:
    assert told(replace(DONE, trained_s=9000)) == [("waiting", 0, 10), ("training", 10, 60), ("judging", 60, 62)]


def test_what_goes_on_has_no_end() -> None:
    leased = VisitPhases("leased", at(0), at(10), None, None, training=False, started_at=None, trained_s=None)
    assert told(leased) == [("waiting", 0, 10), ("transfer", 10, None)]
    assert told(replace(leased, training=True))[-1] == ("training", 10, None)
    assert told(replace(DONE, state="submitted", judged_at=None))[-1] == ("judging", 60, None)


def test_what_was_given_back_waits_again() -> None:
    assert told(replace(DONE, state="pending", waiting_since=at(70))) == [("waiting", 70, None)]
    assert told(replace(DONE, state="leased", waiting_since=at(70), leased_at=at(75))) == [("waiting", 70, 75), ("transfer", 75, None)]


def test_what_was_undone_has_ended() -> None:
    undone = VisitPhases("undone", at(0), at(10), None, at(30), training=True, started_at=None, trained_s=None)
    assert told(undone) == [("waiting", 0, 10), ("training", 10, 30)]
    assert told(replace(undone, leased_at=None)) == [("waiting", 0, 30)]
