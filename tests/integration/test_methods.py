"""Another method on the same engine: what differs between methods is in one object, and the path does not ask which it is."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fedcybgd.coordinator.verify import verify
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


ROWS = (6, 2, 8)


def averaged_models(live: LiveCoordinator, model: str, **whole: Any) -> tuple[list[Hand], str]:
    hands = [Hand(live) for _ in ROWS]
    return hands, start_run(live, model, hands, method="whole", whole=whole, compression={}, schedule={"cycles": 2})


@pytest.mark.parametrize("weights", ["rows", "equal"])
def test_every_agent_trains_all_blocks_and_the_mean_is_taken(live: LiveCoordinator, model: str, weights: str) -> None:
    hands, run = averaged_models(live, model, weights=weights)
    factors = [rows / sum(ROWS) if weights == "rows" else 1 / len(ROWS) for rows in ROWS]
    for number in range(2):
        before = blocks_of(live, run)
        taken = [hand.take(run) for hand in hands]
        assert {(a.round, a.block) for a in taken} == {(number, "layers.0")}
        assert all([list(g.blocks) for g in a.train.groups] == [["layers.0", "layers.1"], ["head"]] for a in taken)
        assert len({a.train.seed for a in taken}) == 3
        assert {b.codec for a in taken for b in a.manifest.blocks} == {"exact"}, "nobody trains in an emulator"
        view = live.operator.get(f"/runs/{run}")
        assert [(a["seat"], a["agent"]) for a in view["current"]] == [(i, hand.name) for i, hand in enumerate(hands)]
        assert view["rounds"][0]["blocks"] == ["layers.0", "layers.1"]
        deltas = [drawn(hand, a, 10 * number + i) for i, (hand, a) in enumerate(zip(hands, taken, strict=True))]
        for hand, assignment, delta, rows in reversed(list(zip(hands, taken, deltas, ROWS, strict=True))):
            hand.deliver(assignment, delta, rows=rows)
            settled(live, run)
        after = blocks_of(live, run)
        for block, tensors in before.items():
            for name, old in tensors.items():
                new = old
                for delta, factor in zip(deltas, factors, strict=True):  # in the order of seats, though they came the other way round
                    new = new + torch.tensor(factor, dtype=torch.float32) * delta[name] if name in delta else new
                assert torch.equal(after[block][name], new), name
    assert versions(live, run) == {"embeddings": 0, "layers.0": 2, "layers.1": 2, "pooler": 0, "head": 2}
    assert live.operator.get(f"/runs/{run}")["state"] == "completed"
    assert verify(live.settings, run).made_again == 6


def test_those_who_are_drawn_train_and_the_others_stand_in_for_who_goes(live: LiveCoordinator, model: str) -> None:
    hands, run = averaged_models(live, model, fraction=0.5)
    got = {hand.name: hand.claim(run) for hand in hands}
    busy = [hand for hand in hands if got[hand.name] is not None]
    (idle,) = (hand for hand in hands if got[hand.name] is None)
    assert len(busy) == 2
    mine = got[busy[0].name]
    assert mine is not None
    assert busy[0].give_back(mine, "data_invalid").status_code == 200
    stand_in = idle.take(run)
    assert (stand_in.assignment_id, stand_in.train) == (mine.assignment_id, mine.train), "the very same seat"


def test_who_hides_how_many_rows_it_has_is_named_before_rows_weigh(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    spec = run_file(model, [hand, other], method="whole", compression={})
    run = live.create_run(spec)
    (offer,) = (r for r in hand.me().runs if r.run_id == run["id"])
    assert offer.visits is not None
    assert (offer.visits.all_at_once, offer.visits.weighed_by_rows) == (True, True)
    for one, more in ((hand, {"rows": 10}), (other, {})):
        body = {"runs": [{"run_id": run["id"], "fits": True, **more}]}
        assert one.http.put("/agents/me/readiness", json=body).status_code == 204
    refusal = refused(operator(live).post(f"/runs/{run['id']}/start"), 409, "rows_hidden")
    assert other.name in refusal.message
    assert hand.name not in refusal.message
    assert "whole.weights" in refusal.message
    assert "`weights: equal`" in refusal.message
    equal = live.create_run({**run_file(model, [hand, other], method="whole", compression={}), "whole": {"weights": "equal"}})
    assert other.http.put("/agents/me/readiness", json={"runs": [{"run_id": equal["id"], "fits": True}]}).status_code == 204
    assert len(live.operator.post(f"/runs/{equal['id']}/start")["participants"]) == 2


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
    assert "block-cycle, whole" in body.message
    refused(operator(live).get(f"/runs/{spec['name']}"), 404, "not_found")
    refused(operator(live).post("/plan", json=spec), 422, "method_unknown")
