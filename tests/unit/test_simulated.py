"""The model of coordinator, line and agents that `benchmarks.simulation` asks: small cases that can be reckoned by hand."""

from typing import Any

import pytest
import simpy

from benchmarks.simulated import Coordinator, Costs, Fleet, Link, Simulation, Visit, rounds_of
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape

NOTHING = dict.fromkeys(
    (
        "poll_s", "renew_s", "lease_s", "request_s", "served_s_per_gb", "received_s_per_gb", "between_s", "judge_s", "judge_s_per_million",
        "apply_s", "apply_s_per_million",
    ), 0.0,
)  # fmt: skip


def took(visits: list[Visit], fleet: dict[str, Any] | None = None, coordinator: dict[str, Any] | None = None, **costs: float) -> float:
    """Seconds of one round."""
    model = Simulation(
        Costs(**{"renew_every_s": 2, **NOTHING, **costs}), Coordinator(line_bytes_per_s=1e9, **(coordinator or {})),
        Fleet(**{"agents": 10, "line_bytes_per_s": 1e8, "noticed_s": 80, **(fleet or {})}), reassign_after_s=300, whole=5e8,
    )  # fmt: skip
    return model.run([visits]).seconds


def visit(agent: int = 0, **values: float) -> Visit:
    return Visit(**{"agent": agent, "down": 0, "up": 0, "parameters": 0, "blobs": 0, "train_s": 0, **values})  # type: ignore[arg-type]


def test_what_moves_at_once_shares_the_line_and_is_no_faster_than_its_own() -> None:
    env = simpy.Environment()
    link, done = Link(env, whole=100, each=60), {}

    def move(name: str, size: float, after: float) -> Any:
        yield env.timeout(after)
        yield link.move(size)
        done[name] = env.now

    env.process(move("first", 120, 0))
    env.process(move("second", 50, 1))
    env.run()
    # Alone the first has 60 a second; from second 1 on both have 50, so that both have the last 50 or 10 of theirs by second 2 and 2.2.
    assert done == {"second": pytest.approx(2.0), "first": pytest.approx(1 + 1 + 10 / 60)}


def test_a_round_is_as_long_as_what_follows_one_another_in_it() -> None:
    one = visit(down=1e8, up=1e7, parameters=2e6, blobs=3, train_s=40)
    assert took([one], lease_s=1, request_s=0.1, between_s=0.5, judge_s=2, judge_s_per_million=1, apply_s=4, apply_s_per_million=3) == (
        pytest.approx(0.5 + 1 + 0.3 + 1 + 40 + 0.1 + 0.2 + 4 + 10)
    )


def test_deltas_that_come_at_once_are_judged_one_after_another_in_a_lane() -> None:
    three = [visit(n, train_s=10) for n in range(3)]
    assert took(three, judge_s=2, apply_s=1) == pytest.approx(10 + 3 * 2 + 1)
    assert took(three, coordinator={"lanes": 3}, judge_s=2, apply_s=1) == pytest.approx(10 + 2 + 1)


def test_who_waits_takes_of_the_web_process_what_visits_lack() -> None:
    """Ten thousand are told to wait for 54 seconds in one claim, five thousand for 50."""
    assert took([visit()], {"agents": 10_000}, lease_s=1, poll_s=0.0027) == pytest.approx(2)  # half of it is taken
    assert took([visit()], {"agents": 10_000}, {"processes": 2}, lease_s=1, poll_s=0.0027) == pytest.approx(1 / 0.73)
    assert took([visit()], {"agents": 10_000}, {"core": 0.75}, lease_s=1, judge_s=3, poll_s=0.0027) == pytest.approx(4 + 4)


def test_until_all_wait_again_that_were_let_go_for_a_run_visits_have_less() -> None:
    crowd = {"agents": 10_000}
    assert took([visit()], crowd, lease_s=1, poll_s=0.00135, let_go_a_s=200) == pytest.approx(1 / (1 - 0.25 - 0.27))
    assert took([visit(train_s=60)], crowd, request_s=1, poll_s=0.00135, let_go_a_s=200) == pytest.approx(60 + 2 / 0.75)


def test_whoever_is_gone_is_noticed_and_stood_in_for() -> None:
    """80 s until its lease ends, 300 until another may take what was meant for it, who fetches all of the emulator."""
    assert took([visit(3, train_s=10)], {"dying": frozenset({3})}) == pytest.approx(80 + 300 + 5 + 10)
    assert took([visit(3, train_s=10)], {"dying": frozenset({3}), "silent_after_s": 0}) == pytest.approx(80 + 5 + 10)


def test_visits_are_those_of_the_method() -> None:
    shape = ModelShape.of({"model_type": "bert", "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 1000})
    blocks = [BlockShape(f"layers.{n}", "layer", {f"{n}.weight": (256, 64)}) for n in range(4)]
    spec = RunFile.model_validate(
        {
            "name": "r",
            "model": "m",
            "task": {"kind": "causal-lm", "max_length": 16},
            "train": {"steps": 5},
            "schedule": {"cycles": 2, "wave": 2},
        }
    )
    names = [block.name for block in blocks]
    rounds = list(rounds_of(spec, shape, blocks, names, agents=3, step_s=0.5))
    agents = [f"agent-{n:06}" for n in range(3)]
    assert [[agents[v.agent] for v in visits] for visits in rounds] == [
        [seat.agent for seat in method_of(spec).seats(spec, names, agents, number, [])] for number in range(4)
    ]
    assert {v.train_s for visits in rounds for v in visits} == {2.5}
    assert all(v.parameters == 256 * 64 and v.up > 0 for visits in rounds for v in visits)
