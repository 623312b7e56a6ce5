"""One class of promises, kept by every federated method."""

from typing import Any

import pytest

from fedcybgd.coordinator.domain.exposure import ExposureBudgetTooSmall
from fedcybgd.coordinator.domain.methods.method import Delivered, Method
from fedcybgd.coordinator.domain.methods.registry import METHODS
from fedcybgd.coordinator.domain.run_file import RunFile

BLOCKS = ["embeddings", "layers.0", "layers.1", "layers.2", "norm"]
AGENTS = [f"agt_{i}" for i in range(7)]
MANY: dict[str, dict[str, Any]] = {"block-cycle": {"schedule": {"wave": 3}}, "whole": {"whole": {"fraction": 0.4}},
                                  "adapters": {"adapters": {"fraction": 0.4}}}  # fmt: skip
"""Run files in which a round has several seats, but not one for each agent."""


def spec_of(name: str, **more: Any) -> RunFile:
    return RunFile.model_validate({"name": "r", "model": "m", "task": {"kind": "causal-lm"}, "method": name, **more})


@pytest.mark.parametrize("name", METHODS)
class TestMethod:
    @pytest.fixture
    def method(self, name: str) -> Method:
        return METHODS[name]

    def test_a_cycle_trains_every_block(self, method: Method, name: str) -> None:
        for spec in (spec_of(name), spec_of(name, **MANY[name])):
            rounds = method.rounds_per_cycle(spec, BLOCKS)
            seats = [seat for number in range(rounds) for seat in method.seats(spec, BLOCKS, AGENTS, number, ())]
            assert {block for seat in seats for block in seat.blocks} == set(BLOCKS)
            assert {seat.cycle for seat in seats} == {0}
            assert [seat.cycle for seat in method.seats(spec, BLOCKS, AGENTS, rounds, ())] == [1] * len(
                method.seats(spec, BLOCKS, AGENTS, rounds, ())
            )

    def test_it_is_pure(self, method: Method, name: str) -> None:
        first, again = ([method.seats(spec_of(name, **MANY[name]), BLOCKS, AGENTS, number, ()) for number in range(9)] for _ in range(2))
        other = [method.seats(spec_of(name, seed=1, **MANY[name]), BLOCKS, AGENTS, number, ()) for number in range(9)]
        assert first == again
        assert first != other

    def test_seats_are_in_the_order_of_their_numbers_with_a_seed_each(self, method: Method, name: str) -> None:
        seats = [seat for number in range(9) for seat in method.seats(spec_of(name, **MANY[name]), BLOCKS, AGENTS, number, ())]
        by_round = [[s.number for s in seats if s.round == number] for number in range(9)]
        assert all(numbers == list(range(len(numbers))) for numbers in by_round)
        assert len({seat.seed for seat in seats}) == len(seats)

    def test_nobody_has_two_seats_of_a_round_while_there_are_others(self, method: Method, name: str) -> None:
        spec = spec_of(name, **MANY[name])
        assert method.is_shared(spec)
        for number in range(9):
            agents = [seat.agent for seat in method.seats(spec, BLOCKS, AGENTS, number, ())]
            assert len(set(agents)) == len(agents) > (1 if number % method.rounds_per_cycle(spec, BLOCKS) == 0 else 0)

    def test_nobody_is_named_where_whoever_comes_first_may_have_it(self, method: Method, name: str) -> None:
        schedule = {**MANY[name].get("schedule", {}), "agents": "first_come"}
        spec = spec_of(name, **{**MANY[name], "schedule": schedule})
        assert {seat.agent for number in range(4) for seat in method.seats(spec, BLOCKS, AGENTS, number, ())} == {None}

    def test_what_is_trained_at_once_is_said(self, method: Method, name: str) -> None:
        spec = spec_of(name, **MANY[name])
        assert method.trains_all(spec) == all(set(seat.blocks) == set(BLOCKS) for seat in method.seats(spec, BLOCKS, AGENTS, 0, ()))

    def test_weights_of_a_full_round_are_a_mean(self, method: Method, name: str) -> None:
        delivered = [Delivered(i, None, 10 * (i + 1)) for i in range(4)]
        weights = method.weights(spec_of(name, **MANY[name]), "layers.0", delivered, 4)
        assert sum(weights) == pytest.approx(1)
        assert all(weight > 0 for weight in weights)
        uneven = len(set(weights)) > 1
        assert uneven == method.weighs_rows(spec_of(name))

    def test_a_budget_with_which_nothing_can_be_trained_is_refused(self, method: Method, name: str) -> None:
        with pytest.raises(ExposureBudgetTooSmall, match=r"exposure\.max_exact_blocks is 1"):
            method.check(spec_of(name, exposure={"max_exact_blocks": 1}), BLOCKS, {"norm"})
        method.check(spec_of(name, exposure={"max_exact_blocks": len(BLOCKS)}), BLOCKS, {"norm"})
        method.check(spec_of(name), BLOCKS, {"norm"}, 1)
