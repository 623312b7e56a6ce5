"""Which block is visited when, by whom, at which learning rate and from which seed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.run_file import RunFile
from coordinator.domain.schedule import Visit, cycle_order, rounds_in, visit, visit_seed

BLOCKS = ["embeddings", "layers.0", "layers.1", "layers.2", "head"]
AGENTS = ["ann", "bob", "eve"]


def spec(seed: int = 0, train: dict[str, Any] | None = None, **schedule: Any) -> RunFile:
    return RunFile.model_validate(
        {"name": "r", "model": "m", "task": {"kind": "causal-lm"}, "schedule": schedule, "train": train or {}, "seed": seed}
    )


def visits(run: RunFile, blocks: list[str] = BLOCKS, agents: list[str] = AGENTS) -> list[Visit]:
    return [visit(run, blocks, agents, number) for number in range(rounds_in(run, blocks))]


def test_ascending_and_descending() -> None:
    assert [v.block for v in visits(spec(cycles=2))] == BLOCKS * 2
    assert [v.block for v in visits(spec(cycles=2, order="descending"))] == BLOCKS[::-1] * 2


def test_a_round_knows_its_number_and_cycle() -> None:
    plan = visits(spec(cycles=3))
    assert [v.round for v in plan] == list(range(15))
    assert [v.cycle for v in plan] == [0] * 5 + [1] * 5 + [2] * 5


orders = st.sampled_from(["ascending", "descending", "random"])


@given(
    orders,
    st.sampled_from(["fixed", "rotating", "first_come"]),
    st.integers(0, 2**31 - 1),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_every_cycle_visits_every_block_once(order: str, agents: str, seed: int, blocks: int, people: int, cycles: int) -> None:
    run, names = spec(seed, order=order, agents=agents, cycles=cycles), [f"layers.{i}" for i in range(blocks)]
    plan = visits(run, names, [f"agent{i}" for i in range(people)])
    assert len(plan) == cycles * blocks
    for cycle in range(cycles):
        assert sorted(v.block for v in plan if v.cycle == cycle) == sorted(names)


@given(st.integers(0, 2**31 - 1), st.integers(0, 50))
def test_a_random_order_depends_on_seed_and_cycle_alone(seed: int, cycle: int) -> None:
    names = [f"layers.{i}" for i in range(12)]
    assert cycle_order(spec(seed, order="random"), names, cycle) == cycle_order(spec(seed, order="random", cycles=99), list(names), cycle)


def test_a_random_order_is_pinned_and_changes_with_seed_and_cycle() -> None:
    names = [f"layers.{i}" for i in range(12)]
    seen = {tuple(cycle_order(spec(seed, order="random"), names, cycle)) for seed in range(4) for cycle in range(4)}
    assert len(seen) == 16
    # Another order here would break the repetition of every run that is under way.
    assert cycle_order(spec(0, order="random"), ["a", "b", "c", "d", "e"], 0) == PINNED_ORDER


PINNED_ORDER = ["c", "d", "b", "a", "e"]


@given(orders, st.integers(1, 7), st.integers(1, 5))
def test_fixed_gives_a_block_to_the_same_agent_in_every_cycle(order: str, blocks: int, people: int) -> None:
    names, agents = [f"layers.{i}" for i in range(blocks)], [f"agent{i}" for i in range(people)]
    for v in visits(spec(agents="fixed", order=order, cycles=3), names, agents):
        assert v.agent == agents[names.index(v.block) % people]


@given(orders, st.integers(1, 7), st.integers(1, 5))
def test_rotating_brings_every_block_to_every_agent(order: str, blocks: int, people: int) -> None:
    names, agents = [f"layers.{i}" for i in range(blocks)], [f"agent{i}" for i in range(people)]
    plan = visits(spec(agents="rotating", order=order, cycles=people), names, agents)
    for name in names:
        assert {v.agent for v in plan if v.block == name} == set(agents)
    first = [v for v in plan if v.cycle == 0]
    assert {v.block: v.agent for v in first} == {name: agents[i % people] for i, name in enumerate(names)}


def test_first_come_is_meant_for_nobody() -> None:
    assert {v.agent for v in visits(spec(agents="first_come", cycles=2))} == {None}


def test_learning_rates_decay_from_cycle_to_cycle_and_not_within_one() -> None:
    train = {"learning_rate": 0.1, "learning_rate_decay": 0.5, "always_learning_rate": 0.2, "always_learning_rate_decay": 0.9}
    for v in visits(spec(train=train, cycles=3)):
        assert v.learning_rate == pytest.approx(0.1 * 0.5**v.cycle)
        assert v.always_learning_rate == pytest.approx(0.2 * 0.9**v.cycle)


def test_blocks_trained_along_take_the_learning_rate_unless_they_have_their_own() -> None:
    plan = visits(spec(train={"learning_rate": 0.1, "learning_rate_decay": 0.5}, cycles=2))
    assert {v.always_learning_rate for v in plan} == {0.1}, "its own decay is 1"


@given(st.integers(0, 2**31 - 1), st.integers(0, 10_000), st.text("abc.0-9", max_size=10))
def test_a_seed_comes_from_run_round_and_block(seed: int, number: int, block: str) -> None:
    drawn = visit_seed(seed, number, block)
    assert 0 <= drawn < 2**63, "torch.Generator takes no more"
    assert drawn == visit_seed(seed, number, block)
    assert (
        len({drawn, visit_seed(seed + 1, number, block), visit_seed(seed, number + 1, block), visit_seed(seed, number, block + "x")}) == 4
    )


def test_seeds_are_pinned_and_differ_between_visits() -> None:
    assert visit_seed(0, 0, "layers.0") == PINNED_SEED
    plan = visits(spec(7, cycles=4))
    assert len({v.seed for v in plan}) == len(plan)
    assert [v.seed for v in plan] == [visit_seed(7, v.round, v.block) for v in plan]
    assert plan == visits(spec(7, cycles=4)), "neither attempt nor clock has a part in it"


PINNED_SEED = 2707841019881522123
