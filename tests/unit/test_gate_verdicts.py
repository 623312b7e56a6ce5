"""Verdicts on rounds by their losses: made-up runs, honest and poisoned."""

import math
import random

import pytest

from fedcybgd.coordinator.domain.gate import GateVerdict, verdict, verdicts

FINE, WORSE, GROSS = GateVerdict


def honest(seed: int, rounds: int = 40, noise: float = 0.05) -> list[float]:
    """A loss that comes down, by less and less, and goes up now and then."""
    draw = random.Random(seed)
    return [3 + 1.4 * math.exp(-number / 4) + draw.gauss(0, noise) for number in range(rounds)]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.2])
def test_nothing_is_held_against_an_honest_run(noise: float) -> None:
    for seed in range(20):
        assert set(verdicts(honest(seed, noise=noise))) == {FINE}


def test_the_run_of_a_skewed_head_goes_up_and_down_by_as_much_as_it_likes() -> None:
    losses = [4.34, 5.1, 4.6, 5.4, 4.2, 5.0, 3.9, 4.8, 3.7, 4.5, 3.4, 4.4]
    assert set(verdicts(losses)) == {FINE}


@pytest.mark.parametrize(
    ("after", "expected"), [(4.4, FINE), (6.5, FINE), (6.6, WORSE), (8.7, WORSE), (8.8, GROSS), (math.inf, GROSS), (math.nan, GROSS)]
)
def test_before_a_runs_noise_is_known_only_the_unheard_of_counts(after: float, expected: GateVerdict) -> None:
    assert verdicts([4.36, after]) == [expected]


@pytest.mark.parametrize(("after", "expected"), [(2.79, FINE), (2.92, FINE), (2.95, WORSE), (3.4, WORSE), (3.6, GROSS), (math.nan, GROSS)])
def test_then_the_measure_is_the_runs_own(after: float, expected: GateVerdict) -> None:
    """Changes of ±0.01 about −0.02: a twentieth and a quarter of the loss are more."""
    losses = [3.0 - 0.02 * n + 0.01 * (n % 2) for n in range(12)]
    assert losses[-1] == pytest.approx(2.79)
    assert verdict(losses, after) == expected


def test_what_was_out_of_proportion_is_no_measure_for_what_follows() -> None:
    losses = honest(0, 20)
    poisoned = [*losses, losses[-1] + 2, losses[-1] + 4, losses[-1] + 6]
    assert verdicts(poisoned)[-3:] == [GROSS] * 3


def test_no_number_is_gross() -> None:
    assert verdict([3.0], None) == GROSS
