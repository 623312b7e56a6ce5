"""Averaging of whole models: who is drawn for a round, and what each delta weighs."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fedcybgd.coordinator.db.models import Assignment, Round
from fedcybgd.coordinator.domain.methods.method import Delivered
from fedcybgd.coordinator.domain.methods.whole import Whole, drawn
from fedcybgd.coordinator.domain.outer import Outer
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.path import delivered
from fedcybgd.shared.contract.training import TrainSettings
from tests.support.visits import METRICS

BLOCKS = ["embeddings", "layers.0", "layers.1"]
NOW = datetime(2025, 1, 1, tzinfo=UTC)


def told(steps: int | None) -> TrainSettings:
    return TrainSettings(task="causal-lm", max_length=8, groups=[], seed=0, steps=steps, batch_size=8)


def spec_of(**whole: Any) -> RunFile:
    return RunFile.model_validate({"name": "r", "model": "m", "task": {"kind": "causal-lm"}, "method": "whole", "whole": whole})


@pytest.mark.parametrize(
    ("fraction", "agents", "number"), [(1.0, 1, 1), (1.0, 7, 7), (0.5, 7, 4), (0.34, 3, 1), (1e-9, 1000, 1), (0.1, 1, 1), (0.99, 100, 99)]
)
def test_the_fraction_is_rounded_and_never_nobody(fraction: float, agents: int, number: int) -> None:
    found = drawn(spec_of(fraction=fraction), agents, 0)
    assert found == sorted(set(found))
    assert len(found) == number
    assert set(found) <= set(range(agents))


def test_each_round_draws_anew_and_everybody_has_a_turn() -> None:
    spec = spec_of(fraction=0.3)
    rounds = [tuple(drawn(spec, 10, number)) for number in range(200)]
    assert rounds == [tuple(drawn(spec, 10, number)) for number in range(200)]
    assert len(set(rounds)) > 60
    turns = Counter(agent for round in rounds for agent in round)
    assert set(turns) == set(range(10))
    assert min(turns.values()) > 30


def test_rates_decay_from_round_to_round() -> None:
    spec = spec_of().model_copy(update={"train": spec_of().train.model_copy(update={"learning_rate": 0.1, "learning_rate_decay": 0.5})})
    seats = [Whole().seats(spec, BLOCKS, ["a", "b"], number, ()) for number in range(3)]
    assert [[seat.learning_rate for seat in round] for round in seats] == [[0.1, 0.1], [0.05, 0.05], [0.025, 0.025]]
    assert {seat.blocks for round in seats for seat in round} == {tuple(BLOCKS)}


def test_rows_weigh_or_all_are_alike() -> None:
    both = [Delivered(0, None, 10), Delivered(1, None, 30)]
    assert Whole().weights(spec_of(), "layers.0", both, 2) == [0.25, 0.75]
    assert Whole().weights(spec_of(weights="equal"), "layers.0", both, 2) == [0.5, 0.5]
    assert Whole().weights(spec_of(), "layers.0", [Delivered(0, None, 0), Delivered(1, None, 0)], 2) == [0.5, 0.5], (
        "nobody has said anything"
    )


def test_the_outer_learning_rate_is_a_factor_and_with_momentum_a_step() -> None:
    both = [Delivered(0, None, 10), Delivered(1, None, 30)]
    plain, moving = spec_of(outer={"learning_rate": 0.5}), spec_of(outer={"learning_rate": 0.5, "momentum": 0.9})
    assert (Whole().weights(plain, "layers.0", both, 2), Whole().outer(plain)) == ([0.125, 0.375], None)
    assert Whole().weights(moving, "layers.0", both, 2) == [0.25, 0.75]
    assert Whole().outer(moving) == Outer(learning_rate=0.5, momentum=0.9, nesterov=False)


def test_a_part_of_a_round_counts_for_a_part() -> None:
    early = Whole().weights(spec_of(), "layers.0", [Delivered(0, None, 10), Delivered(2, None, 30)], 4)
    late = Whole().weights(spec_of(), "layers.0", [Delivered(1, None, 1000)], 4)
    assert (sum(early), late) == (0.5, [0.25])


@pytest.mark.parametrize(("said", "steps", "believed"), [(32, 4, 32), (10**12, 4, 32), (7, 4, 7), (0, 4, 0)])
def test_more_rows_than_the_steps_can_have_used_are_not_believed(said: int, steps: int, believed: int) -> None:
    visit = Assignment(
        seat=3, train=told(steps), submitted_at=NOW + timedelta(seconds=60), metrics=METRICS.model_copy(update={"rows": said})
    )
    assert delivered.of(Round(opened_at=NOW), visit) == Delivered(3, visit.metrics, believed)


def test_steps_of_passes_are_believed_as_far_as_time_allows() -> None:
    visit = Assignment(seat=0, train=told(None), submitted_at=NOW + timedelta(seconds=1))
    visit.metrics = METRICS.model_copy(update={"rows": 10**9, "steps": 10**9})
    assert delivered.of(Round(opened_at=NOW), visit).rows == 8000
    visit.metrics = METRICS.model_copy(update={"rows": 800, "steps": 100})
    assert delivered.of(Round(opened_at=NOW), visit).rows == 800
