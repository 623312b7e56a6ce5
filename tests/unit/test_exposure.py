"""The exposure budget: what a schedule may plan, who may have what, and which budgets cannot work at all."""

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedcybgd.coordinator.domain.exposure import (
    ExposureBudgetTooSmall,
    check_exposure,
    common_blocks,
    may_see,
    members_met,
    room_of,
    team_size,
)
from fedcybgd.coordinator.domain.methods.block_cycle import BlockCycle
from fedcybgd.coordinator.domain.methods.registry import rounds_in
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.seat import Seat


def spec(limit: int | None, policy: str = "int8", always: list[str] | None = None, seed: int = 0, **schedule: Any) -> RunFile:
    return RunFile.model_validate(
        {
            "name": "r", "model": "m", "task": {"kind": "causal-lm"}, "schedule": {"always": always or [], **schedule},
            "exposure": {"max_exact_blocks": limit}, "compression": {"policy": policy}, "seed": seed,
        }
    )  # fmt: skip


def named(word: str, number: int) -> list[str]:
    return [f"{word}{i}" for i in range(number)]


sizes = {"blocks": st.integers(1, 12), "people": st.integers(1, 8), "limit": st.integers(1, 13), "always": st.integers(0, 2)}


def visits(run: RunFile, blocks: list[str], agents: list[str], number: int) -> list[Seat]:
    return BlockCycle().seats(run, blocks, agents, number, run.schedule.always)


@given(
    order=st.sampled_from(["ascending", "descending", "random"]), agents=st.sampled_from(["fixed", "rotating"]), seed=st.integers(0, 50),
    wave=st.integers(1, 12), **sizes,
)  # fmt: skip
def test_no_plan_ever_shows_an_agent_more_than_the_budget(
    order: str, agents: str, seed: int, wave: int, blocks: int, people: int, limit: int, always: int
) -> None:
    names, team, common = named("layers.", blocks), named("agent", people), named("head", always)
    run = spec(limit, always=common, seed=seed, order=order, agents=agents, wave=wave, cycles=2 * people + 1)
    try:
        check_exposure(run, names, set(common), people)
    except ExposureBudgetTooSmall:
        assume(False)
    seen: dict[str | None, set[str]] = defaultdict(set)
    for number in range(rounds_in(run, names)):
        for v in visits(run, names, team, number):
            assert v.agent in team
            seen[v.agent] |= {v.block, *common}
    assert max(len(got) for got in seen.values()) <= limit


@given(**sizes)
def test_a_budget_is_refused_exactly_when_the_blocks_do_not_fit(blocks: int, people: int, limit: int, always: int) -> None:
    names, common = named("layers.", blocks), named("head", always)
    room = limit - always
    fits = room >= 1 and people * room >= blocks
    if fits:
        check_exposure(spec(limit, always=common), names, set(common), people)
        assert team_size(blocks, people, room) >= 1
    else:
        with pytest.raises(ExposureBudgetTooSmall) as refused:
            check_exposure(spec(limit, always=common), names, set(common), people)
        assert refused.value.code == "exposure_budget_too_small"
        assert str(limit) in refused.value.message


@given(st.integers(0, 30), st.integers(1, 10), st.integers(1, 10))
def test_what_a_team_means_for_one_agent_is_counted_right(blocks: int, agents: int, team: int) -> None:
    assume(team <= agents)
    met = [sum((agent - block) % agents < team for block in range(blocks)) for agent in range(agents)]
    assert max(met) == members_met(blocks, agents, team)


def test_a_team_is_as_large_as_the_budget_allows() -> None:
    assert [team_size(6, 3, room) for room in (2, 3, 4, 5, 6, 99, None)] == [1, 1, 2, 2, 3, 3, 3]
    assert [team_size(4, 6, room) for room in (1, 2, 3, 4)] == [1, 2, 3, 6]
    with pytest.raises(ExposureBudgetTooSmall, match="6 visited blocks are more than 3 agents may see at 1 each"):
        team_size(6, 3, 1)


def test_rotation_goes_round_within_the_team() -> None:
    run = spec(3, always=["head"], cycles=4)  # room for two of four blocks
    plan = [visits(run, named("layers.", 4), named("agent", 4), number)[0] for number in range(16)]
    assert [v.agent for v in plan if v.block == "layers.1"] == ["agent1", "agent2", "agent1", "agent2"]
    free = spec(None, always=["head"], cycles=4)
    assert visits(free, named("layers.", 4), named("agent", 4), 9)[0].agent == "agent3"


def test_what_an_agent_has_already_costs_nothing() -> None:
    assert may_see({"a", "b"}, {"a"}, 2)
    assert not may_see({"a", "b"}, {"c"}, 2)
    assert may_see({"a"}, {"b"}, 2)
    assert may_see({"a", "b", "c"}, {"a", "c"}, 2), "it was more before; this adds nothing"
    assert may_see({"a", "b", "c"}, {"d"}, None)
    assert not may_see(set(), {"a", "head"}, 1)


def test_blocks_that_everybody_gets_are_common() -> None:
    names = ["embeddings", "layers.0", "norm", "head"]
    assert common_blocks(spec(2, always=["head"]), names, {"norm"}) == {"head", "norm"}
    assert common_blocks(spec(2, policy="none"), names, names) == set(names)
    assert common_blocks(spec(2, policy="hybrid"), names, set()) == set(names), "any block may come exact, sooner or later"
    assert room_of(spec(3), {"head", "norm"}) == 1
    assert room_of(spec(None), {"head"}) is None


@pytest.mark.parametrize(
    ("limit", "policy", "common", "agents", "said"),
    [
        (3, "none", {"a", "b", "c", "head"}, None, "policy: none` every agent gets all blocks exact: 4 blocks at least"),
        (3, "hybrid", {"a", "b", "c", "head"}, None, "policy: hybrid` any block may come exact: 4 blocks at least"),
        (1, "int8", {"head"}, None, "every visit brings head, and the visited block: 2 blocks at least"),
        (2, "int8", {"head"}, 2, "2 agents may see 2 × 1 = 2 visited blocks, but the run visits 3: enrol 3 agents, or allow 3 blocks"),
    ],
)
def test_a_budget_that_cannot_work_says_its_numbers(limit: int, policy: str, common: set[str], agents: int | None, said: str) -> None:
    with pytest.raises(ExposureBudgetTooSmall) as refused:
        check_exposure(spec(limit, policy=policy), ["a", "b", "c"], common, agents)
    assert said in refused.value.message
    assert refused.value.detail["limit"] == limit


@pytest.mark.parametrize(
    ("run", "visited", "common", "agents"),
    [
        (spec(4, policy="none"), ["a", "b", "c"], {"a", "b", "c", "head"}, 1), (spec(2), ["a", "b", "c"], {"head"}, 3),
        (spec(3), ["a", "b", "c"], {"head"}, 2), (spec(None), ["a", "b", "c"], {"head"}, 1), (spec(1), ["head"], {"head"}, 1),
    ],
)  # fmt: skip
def test_a_budget_that_works_is_let_through(run: RunFile, visited: list[str], common: set[str], agents: int) -> None:
    try:
        check_exposure(run, visited, common, agents)
    except ExposureBudgetTooSmall as error:
        pytest.fail(error.message)
