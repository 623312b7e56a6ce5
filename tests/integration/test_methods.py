"""Another method on the same engine: what differs between methods is in one object, and the path does not ask which it is."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.live import LiveCoordinator
from tests.support.methods import all_averaged
from tests.support.visits import Hand, Tensors, operator, refused, run_file, settled, shard_tensors, start_run, versions


@pytest.fixture
def averaged() -> Iterator[str]:
    with all_averaged() as name:
        yield name


def drawn(hand: Hand, assignment: object, seed: int) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=draw) * 0.01 for name, t in hand.delta(assignment).items()}  # type: ignore[arg-type]


def blocks_of(live: LiveCoordinator, run: str) -> dict[str, Tensors]:
    return {b["name"]: shard_tensors(live, b["digest"]) for b in live.operator.get(f"/runs/{run}")["blocks"]}


def test_every_agent_trains_all_blocks_and_the_mean_is_taken(live: LiveCoordinator, model: str, averaged: str) -> None:
    hands = [Hand(live) for _ in range(3)]
    run = start_run(live, model, hands, method=averaged, schedule={"cycles": 2})
    for number in range(2):
        before = blocks_of(live, run)
        taken = [hand.take(run) for hand in hands]
        assert {(a.round, a.block) for a in taken} == {(number, "layers.0")}
        assert all([list(g.blocks) for g in a.train.groups] == [["layers.0", "layers.1"], ["head"]] for a in taken)
        assert len({a.train.seed for a in taken}) == 3
        view = live.operator.get(f"/runs/{run}")
        assert [(a["seat"], a["agent"]) for a in view["current"]] == [(i, hand.name) for i, hand in enumerate(hands)]
        assert view["rounds"][0]["blocks"] == ["layers.0", "layers.1"]
        deltas = [drawn(hand, a, 10 * number + i) for i, (hand, a) in enumerate(zip(hands, taken, strict=True))]
        for hand, assignment, delta in reversed(list(zip(hands, taken, deltas, strict=True))):
            hand.deliver(assignment, delta)
            settled(live, run)
        after = blocks_of(live, run)
        third = torch.tensor(1 / 3, dtype=torch.float32)
        for block, tensors in before.items():
            for name, old in tensors.items():
                new = old
                for delta in deltas:  # in the order of seats, though they came the other way round
                    new = new + third * delta[name] if name in delta else new
                assert torch.equal(after[block][name], new), name
    assert versions(live, run) == {"embeddings": 0, "layers.0": 2, "layers.1": 2, "pooler": 0, "head": 2}
    assert live.operator.get(f"/runs/{run}")["state"] == "completed"


def test_what_is_rejected_is_asked_for_again_of_the_same_seat(live: LiveCoordinator, model: str, averaged: str) -> None:
    hands = [Hand(live) for _ in range(3)]
    run = start_run(live, model, hands, method=averaged)
    taken = [hand.take(run) for hand in hands]
    bad = {name: torch.full_like(t, float("nan")) for name, t in drawn(hands[1], taken[1], 0).items()}
    hands[1].deliver(taken[1], bad)
    settled(live, run)
    current = live.operator.get(f"/runs/{run}")["current"]
    assert sorted((a["seat"], a["state"]) for a in current) == [(0, "leased"), (1, "pending"), (1, "rejected"), (2, "leased")]
    again = next(a for a in current if a["state"] == "pending")
    assert again["blocks"] == ["layers.0", "layers.1"]
    hands[0].deliver(taken[0])
    settled(live, run)
    stand_in = hands[0].claim(run, wait=0)
    assert stand_in is None or stand_in.assignment_id == again["id"]


def test_a_method_that_there_is_not_is_refused(live: LiveCoordinator, model: str, hand: Hand) -> None:
    spec = run_file(model, [hand], method="all-averaged")
    body = refused(operator(live).post("/runs", json=spec), 422, "method_unknown")
    assert "'all-averaged'" in body.message
    assert "block-cycle" in body.message
    refused(operator(live).get(f"/runs/{spec['name']}"), 404, "not_found")
    refused(operator(live).post("/plan", json=spec), 422, "method_unknown")
