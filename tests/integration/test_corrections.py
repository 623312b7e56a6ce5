"""Expanded visits over the wire: what is asked of agents, what comes of their corrections, and how it is judged; hands deliver the deltas."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from fedcybgd import Client
from fedcybgd.coordinator.verify import verify
from fedcybgd.shared.contract.adapters import factors_of
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.versions import ADAPTERS, SPOKEN, VERSION
from tests.integration.test_adapters import provenance_of
from tests.integration.test_methods import blocks_of
from tests.integration.test_rollback import digests
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, Tensors, last_visit, refused, settled, start_run, unchanged, versions

CORRECTIONS = {"rank": 2, "alpha": 6.0, "matrices": ["query", "output.dense"]}
SCALE = 3.0


def drawn(hand: Hand, live: LiveCoordinator, assignment: LeasedAssignment, seed: int) -> Tensors:
    """A small delta of what is trained, with factors beside what is corrected."""
    draw, said = torch.Generator().manual_seed(seed), assignment.train.corrections
    shapes = {name: tuple(t.shape) for name, t in hand.delta(assignment).items()}
    matrices = {n: t.shape for tensors in blocks_of(live, assignment.run_name).values() for n, t in tensors.items()}
    for weight in said.matrices if said is not None else ():
        (left, right), (rows, columns) = factors_of(weight), matrices[weight]
        shapes |= {left: (rows, 2), right: (2, columns)}
    return {name: torch.randn(shape, generator=draw) * (0.1 if ".adapter_" in name else 0.01) for name, shape in shapes.items()}


def added(delta: Tensors, weight: float, name: str, base: torch.Tensor) -> torch.Tensor:
    """A tensor after a delta, which has it or corrects it."""
    left, right = factors_of(name)
    if left in delta:
        moved = delta[left][:, :1] * delta[right][:1] + delta[left][:, 1:] * delta[right][1:]
        return base + moved * SCALE * weight
    return base + delta[name] * weight if name in delta else base


def test_a_run_of_expanded_visits_from_its_first_round_to_its_provenance(
    coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path
) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    hands, client = [Hand(live) for _ in range(2)], Client(live.url, live.operator_key)
    old = Hand(live)
    old.http.headers[VERSION] = str(ADAPTERS)
    schedule = {"cycles": 3, "agents": "first_come", "damping": 0.5}
    run = start_run(live, "bert", "all", corrections=CORRECTIONS, compression={"policy": "int4"}, schedule=schedule)
    seen = [digests(live, run)]
    assert SPOKEN > ADAPTERS
    assert old.claim(run) is None, "an agent of an earlier version would leave the corrections out"
    for number in range(3):
        hand, present = hands[number % 2], blocks_of(live, run)
        assignment = hand.take(run)
        said, visited = assignment.train.corrections, assignment.block
        assert said is not None
        assert (said.rank, said.scale, said.learning_rate) == (2, SCALE, 2e-3)
        other = f"layers.{1 - int(visited[-1])}"
        assert [name in present[other] for name in said.matrices] == [True] * 3
        assert {b.block: b.codec for b in assignment.manifest.blocks}[other] == "int4", "what is corrected is seen by nobody"
        delta = drawn(hand, live, assignment, number)
        hand.deliver(assignment, delta)
        settled(live, run)
        after = blocks_of(live, run)
        for block, tensors in present.items():
            for name, tensor in tensors.items():
                assert torch.equal(after[block][name], added(delta, 0.5, name, tensor)), name
        seen.append(digests(live, run))
    assert versions(live, run) == {"embeddings": 0, "layers.0": 3, "layers.1": 3, "pooler": 0, "head": 3}
    assert verify(live.settings, run).made_again == 9

    provenance_of(live, client, run, tmp_path / "first", 9, number=4)
    client.runs.rollback(run, 1)
    assert digests(live, run) == seen[1]
    assert verify(live.settings, run).made_again == 9
    client.runs.without(run, hands[0].name)
    assert digests(live, run) == seen[0], "what it corrected is gone as well"
    assert verify(live.settings, run).made_again == 9
    for agent in hands:
        exact = {e["block"] for e in live.operator.every("/exposure") if e["agent"] == agent.name and e["codec"] == "exact"}
        assert exact <= {"layers.0", "layers.1", "head"}


def test_in_a_wave_corrections_are_averaged_and_those_of_an_agent_can_be_taken_out(
    live: LiveCoordinator, model: str, tmp_path: Path
) -> None:
    hands = [Hand(live) for _ in range(2)]
    schedule = {"wave": 2, "damping": 0.5, "head_average": "damped", "agents": "fixed", "cycles": 2}
    run = start_run(live, model, hands, corrections=CORRECTIONS, schedule=schedule)
    present = blocks_of(live, run)
    taken = [hand.take(run) for hand in hands]
    deltas = [drawn(hand, live, assignment, i) for i, (hand, assignment) in enumerate(zip(hands, taken, strict=True))]
    for i in (1, 0):  # in the order of seats whoever comes first
        hands[i].deliver(taken[i], deltas[i])
    settled(live, run)

    def wanted(members: list[int]) -> dict[str, Tensors]:
        found = {block: dict(tensors) for block, tensors in present.items()}
        for i in members:
            for block, tensors in found.items():
                weight = 0.5 if block == taken[i].block or (len(members) == 1 and block == "head") else 0.25
                found[block] = {name: added(deltas[i], weight, name, tensor) for name, tensor in tensors.items()}
        return found

    for members in ([0, 1], [0]):
        after = blocks_of(live, run)
        for block, tensors in wanted(members).items():
            assert all(torch.equal(after[block][name], tensor) for name, tensor in tensors.items()), (members, block)
        assert verify(live.settings, run).made_again == (3 if len(members) == 2 else 6)
        if len(members) == 2:
            provenance_of(live, Client(live.url, live.operator_key), run, tmp_path / "wave", 3, number=4)
            Client(live.url, live.operator_key).runs.without(run, hands[1].name)


@pytest.mark.parametrize("spoilt", ["missing", "rows", "rank"])
def test_a_delta_that_is_none_of_an_expanded_visit_is_refused_before_it_is_read(live: LiveCoordinator, model: str, spoilt: str) -> None:
    hand = Hand(live)
    run = start_run(live, model, [hand], corrections=CORRECTIONS)
    assignment = hand.take(run)
    delta = drawn(hand, live, assignment, 1)
    left = next(name for name in delta if name.endswith(".adapter_left"))
    if spoilt == "missing":
        del delta[left]
    elif spoilt == "rows":
        delta |= {left: delta[left][:3].clone(), f"{left}::rows": torch.arange(3, dtype=torch.int32)}
    else:
        delta[left] = torch.cat([delta[left], delta[left]], dim=1)
    with unchanged(live, run):
        refused(hand.send(assignment, save(delta)), 422, "delta_refused")


@pytest.mark.parametrize(
    ("value", "reason"), [(float("nan"), "non_finite: "), (1e25, "non_finite: "), (30.0, "norm: the delta of layers.1 has norm")]
)
def test_corrections_are_judged_by_what_they_come_to(live: LiveCoordinator, model: str, value: float, reason: str) -> None:
    """Factors of 1e25 are finite, and their product is not."""
    hand = Hand(live)
    run = start_run(live, model, [hand], corrections=CORRECTIONS, schedule={"order": "ascending"})
    assignment = hand.take(run)
    delta = drawn(hand, live, assignment, 1)
    spoilt = {name: torch.full_like(t, value) if ".adapter_" in name and ".query." in name else t for name, t in delta.items()}
    before: Any = digests(live, run)
    hand.deliver(assignment, spoilt)
    settled(live, run)
    visit = last_visit(live, run) if last_visit(live, run)["state"] == "rejected" else live.operator.get(f"/runs/{run}/assignments")[0]
    assert (visit["state"], visit["reason"][: len(reason)]) == ("rejected", reason)
    assert "layers.1" in visit["reason"]
    assert digests(live, run) == before
