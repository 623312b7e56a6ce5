"""Deltas that are out of line with their run's, of blocks that are visited and of those trained along, by the defaults of a run file."""

from collections.abc import Callable

import pytest
import torch

from fedcybgd.shared.contract.assignments import LeasedAssignment
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, Tensors, events, last_visit, settled, start_run, state_of

STEP = 2e-4
"""Less than the one step that hands say they took, at the default learning rate."""


def honest(hand: Hand, assignment: LeasedAssignment, factor: float = 1.0) -> Tensors:
    return {name: factor * STEP * torch.randn_like(t).clamp(-1, 1) for name, t in hand.delta(assignment).items()}


def whole(hand: Hand, assignment: LeasedAssignment) -> Tensors:
    return {name: t.float() for tensors in hand.base(assignment).values() for name, t in tensors.items()}


def only(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Hand, LeasedAssignment, Tensors], None]:
    def spoil(hand: Hand, assignment: LeasedAssignment, good: Tensors) -> None:
        base = whole(hand, assignment)
        good.update({name: change(base[name]) for name in good if part in name})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "block"),
    [
        (only("classifier", lambda w: -2 * w), "head"),
        (only("classifier", lambda w: torch.full_like(w, 1e30)), "head"),
        (only("classifier", lambda w: torch.full_like(w, 3e38)), "head"),
        (only("encoder", lambda w: -2 * w), "layers.0"),
        (only("encoder", lambda w: -w), "layers.0"),
        (
            only("encoder", lambda w: 9.9 * w.norm() * torch.nn.functional.normalize(torch.randn_like(w).flatten(), dim=0).view_as(w)),
            "layers.0",
        ),
    ],
)
def test_what_no_visit_can_do_is_rejected_from_the_first_round_on(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand, spoil: Callable[[Hand, LeasedAssignment, Tensors], None], block: str
) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"}, admission={})
    tensors = honest(hand, assignment := hand.take(run))
    spoil(hand, assignment, tensors)
    blocks = state_of(live, run)["blocks"]
    hand.deliver(assignment, tensors)
    view = settled(live, run)
    rejected = live.operator.get(f"/runs/{run}/assignments")[0]
    assert (rejected["state"], rejected["reason"][: 21 + len(block)]) == ("rejected", f"norm: the delta of {block} h")
    assert (view["state"], state_of(live, run)["blocks"]) == ("running", blocks)
    again = other.take(run)
    other.deliver(again, honest(other, again))
    assert settled(live, run)["rounds_done"] == 1


@pytest.mark.parametrize("value", [3e38, 1e30, 1e4])
def test_who_says_that_it_did_many_steps_goes_no_farther_than_the_time_allows(
    live: LiveCoordinator, model: str, hand: Hand, value: float
) -> None:
    """A run file that says nothing of steps counts epochs, and only the agent knows its rows."""
    run = start_run(live, model, [hand], admission={})
    tensors = honest(hand, assignment := hand.take(run))
    only("classifier", lambda w: torch.full_like(w, value))(hand, assignment, tensors)
    hand.deliver(assignment, tensors, steps=2**62)
    view = settled(live, run)
    assert view["rounds_done"] == 0
    assert live.operator.get(f"/runs/{run}/assignments")[0]["reason"].startswith("norm: the delta of head has norm")


def test_with_time_the_band_is_that_of_the_run_itself(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    """Twelve times as far as before is within reach of the step here, and out of line all the same; so is an earlier delta turned round."""
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come", "cycles": 4}, admission={})
    first: Tensors = {}
    for number in range(5):
        tensors = honest(hand, assignment := hand.take(run), 0.08)
        first = first or tensors
        hand.deliver(assignment, tensors)
        assert settled(live, run)["rounds_done"] == number + 1
    hand.deliver(assignment := hand.take(run), honest(hand, assignment, 1.0))
    settled(live, run)
    visits = live.operator.get(f"/runs/{run}/assignments")
    assert "times its block's norm, beyond the" in next(visit for visit in visits if visit["state"] == "rejected")["reason"]
    other.deliver(assignment := other.take(run), honest(other, assignment, 0.1))
    settled(live, run)
    assignment = hand.take(run)
    assert assignment.block == "layers.0"
    hand.deliver(assignment, {name: -0.7 * t for name, t in first.items()})
    settled(live, run)
    visits = live.operator.get(f"/runs/{run}/assignments")
    assert [visit["reason"] for visit in visits if visit["state"] == "rejected"][1] == (
        "direction: the delta of layers.0 is that of round 0, turned round"
    )


def test_next_to_nothing_from_one_agent_makes_no_band_for_another(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come", "cycles": 6}, admission={})
    for number in range(8):
        agent = other if number > 4 else hand
        agent.deliver(assignment := agent.take(run), honest(agent, assignment, 0.1 if agent is other else 1e-8))
        assert settled(live, run)["rounds_done"] == number + 1


def test_who_is_out_of_line_with_its_own_deltas_alone_is_asked_for_the_next(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand
) -> None:
    """One strike more would be a quarantine; where nobody else has shown what is usual it is none."""
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come", "cycles": 6}, admission={})
    for number in range(6):
        hand.deliver(assignment := hand.take(run), honest(hand, assignment, 0.1 if number < 4 else 1.5))
        view = settled(live, run)
        if number >= 4:
            other.deliver(assignment := other.take(run), honest(other, assignment, 0.001))
            view = settled(live, run)
        assert view["rounds_done"] == number + 1
    assert [a["quarantined_until"] for a in live.operator.get("/agents?limit=1000") if a["name"] == hand.name] == [None]


def test_who_seems_not_to_have_trained_is_told_of_and_accepted(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], schedule={"cycles": 3}, admission={})
    tensors = honest(hand, assignment := hand.take(run))
    hand.deliver(assignment, tensors)
    settled(live, run)
    assert "free_rider" not in events(live, run)
    hand.deliver(assignment := hand.take(run), {name: torch.zeros_like(t) for name, t in hand.delta(assignment).items()})
    settled(live, run)
    hand.deliver(hand.take(run), {name: 1.1 * t for name, t in tensors.items()})
    settled(live, run)
    told = [e["message"] for e in live.operator.get(f"/runs/{run}")["events"] if e["code"] == "free_rider"]
    assert sorted(text.partition(": ")[2] for text in told) == [
        "the delta of layers.0 is a multiple of that of round 0", "the delta of layers.1 changes nothing",
    ]  # fmt: skip
    assert last_visit(live, run)["round"] == 3
