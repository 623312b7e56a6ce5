"""A first cycle that is otherwise than those after it: how its rounds, visits and deltas are, what it is told of, and what is refused."""

from typing import Any

import pytest

from fedcybgd.coordinator.domain.methods.block_cycle import BlockCycle
from fedcybgd.coordinator.domain.methods.method import Delivered
from fedcybgd.coordinator.domain.methods.registry import place_of, rounds_in
from fedcybgd.coordinator.domain.run_file import RunFile, parse_run_file
from fedcybgd.coordinator.domain.vocabulary import rows_held
from fedcybgd.coordinator.services.path.open_round import train_settings
from tests.unit.test_forecast import plan
from tests.unit.test_run_file import SMALLEST, problems

BLOCKS = ["embeddings", "layers.0", "layers.1", "layers.2", "norm"]
AGENTS = ["ann", "bob", "eve"]


def spec(first: dict[str, Any] | None, **train: Any) -> RunFile:
    schedule = {"cycles": 3, "wave": 2, "damping": 0.5, "first_cycle": first}
    return RunFile.model_validate(
        {"name": "r", "model": "m", "task": {"kind": "causal-lm"}, "schedule": schedule, "train": {"steps": 8, **train}}
    )


def test_its_waves_are_its_own_and_what_follows_is_as_ever() -> None:
    wide, usual = spec({"wave": 3}), spec(None)
    assert (rounds_in(wide, BLOCKS), rounds_in(usual, BLOCKS)) == (2 + 3 + 3, 9)
    assert [place_of(wide, BLOCKS, number) for number in range(8)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    rounds = [BlockCycle().seats(wide, BLOCKS, AGENTS, number, ()) for number in range(8)]
    assert [[seat.block for seat in seats] for seats in rounds[:3]] == [BLOCKS[:3], BLOCKS[3:], BLOCKS[:2]]
    later = [BlockCycle().seats(usual, BLOCKS, AGENTS, number, ()) for number in range(3, 9)]
    assert [[(s.blocks, s.agent, s.cycle) for s in seats] for seats in rounds[2:]] == [
        [(s.blocks, s.agent, s.cycle) for s in r] for r in later
    ]


def test_its_visits_are_as_long_as_it_says() -> None:
    for first, length, train in (
        ({"steps": 2}, (2, None), {}),
        ({"epochs": 0.5}, (None, 0.5), {}),
        ({"steps": 2}, (2, None), {"steps": None, "epochs": 3}),
    ):
        run = spec(first, **train)
        seats = [BlockCycle().seats(run, BLOCKS, AGENTS, number, ())[0] for number in (0, rounds_in(run, BLOCKS, 1))]
        told = [train_settings(run, seat) for seat in seats]
        assert [(t.steps, t.epochs) for t in told] == [length, (run.train.steps, run.train.epochs)]


def test_its_deltas_are_damped_by_its_own_factor() -> None:
    run, delivered = spec({"damping": 0.2}), [Delivered(0, None, 1)]
    assert [BlockCycle().weights(run.in_cycle(cycle), "norm", delivered, 1) for cycle in range(3)] == [[0.2], [0.5], [0.5]]


def test_what_it_does_not_say_is_that_of_all_cycles() -> None:
    run = spec({"damping": 0.2}, epochs=None)
    assert run.in_cycle(0).schedule.wave == 2
    assert run.in_cycle(0).train == run.train
    assert run.in_cycle(1) is run
    assert spec(None).in_cycle(0) == spec(None)


def test_a_wave_of_the_first_cycle_alone_is_shared_too() -> None:
    strict = {"cycles": 2, "first_cycle": {"wave": 3}}
    run = RunFile.model_validate({"name": "r", "model": "m", "task": {"kind": "causal-lm"}, "schedule": strict})
    assert BlockCycle().is_shared(run)


def test_a_plan_counts_it() -> None:
    firsts: list[dict[str, Any]] = [{}, {"first_cycle": {"steps": 1}}, {"first_cycle": {"wave": 2}}]
    usual, short, wide = (plan(speed=1000, schedule={"cycles": 2, **first}) for first in firsts)
    assert [found.rounds for found in (usual, short, wide)] == [8, 8, 6]
    assert usual.hours is not None
    assert short.hours == pytest.approx(usual.hours * 3 / 4), "half of the visits take half as long"
    assert wide.hours == pytest.approx(usual.hours * 3 / 4), "half of the visits come two at once"
    assert [agent.visits_per_cycle for agent in wide.agents] == [2.0, 2.0]


def test_memory_is_for_the_longest_visits() -> None:
    assert rows_held(spec({"steps": 80}), 1 << 20, None) == 10 * rows_held(spec({"steps": 2}), 1 << 20, None)


@pytest.mark.parametrize(
    ("says", "field", "message"),
    [
        ("{}", "schedule.first_cycle", "it says nothing: give `wave`, `damping`, `steps` or `epochs`, or leave it out"),
        ("{steps: 2, epochs: 1}", "schedule.first_cycle", "give `steps` or `epochs`, not both"),
        ("{learning_rate: 1}", "schedule.first_cycle.learning_rate", "there is no such field"),
    ],
)
def test_what_is_wrong_in_it_is_named(says: str, field: str, message: str) -> None:
    [(_, named, found)] = problems(SMALLEST + f"schedule: {{cycles: 2, first_cycle: {says}}}")
    assert named == field
    assert message in found


def test_it_needs_cycles_after_it_and_a_method_with_cycles() -> None:
    [(_, field, message)] = problems(SMALLEST + "schedule: {first_cycle: {wave: 2}}")
    assert (field, "no other cycle" in message) == ("schedule.first_cycle", True)
    for method in ("whole", "adapters"):
        [(_, field, message)] = problems(SMALLEST + f"method: {method}\nschedule: {{cycles: 2, first_cycle: {{wave: 2}}}}")
        assert field == "schedule.first_cycle"
        assert f"`method: {method}`" in message
    assert parse_run_file(SMALLEST + "schedule: {cycles: 2, first_cycle: null}").schedule.first_cycle is None
