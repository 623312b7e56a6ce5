"""Waves: several blocks of one round, by as many agents, from the same versions, applied together; and what came too late for that."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from sqlalchemy import select

import fedcybgd.coordinator.engine.admit
import fedcybgd.coordinator.engine.apply
from fedcybgd.coordinator.db import models
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import (
    Hand,
    Tensors,
    events,
    finish,
    refused,
    run_file,
    settled,
    shard_tensors,
    start_run,
    state_of,
    together,
    unchanged,
    versions,
)

pytestmark = pytest.mark.database_decides

WAVE = ["embeddings", "layers.0", "layers.1"]
SCHEDULE = {"blocks": WAVE, "wave": 3, "agents": "fixed", "damping": 0.4, "head_average": "damped"}


@pytest.fixture
def hands(live: LiveCoordinator) -> list[Hand]:
    return [Hand(live) for _ in range(3)]


def start_wave(live: LiveCoordinator, model: str, hands: list[Hand], **schedule: Any) -> str:
    return start_run(live, model, hands, schedule={**SCHEDULE, **schedule})


def random_delta(hand: Hand, assignment: LeasedAssignment, seed: int) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=draw) * 0.01 for name, t in hand.delta(assignment).items()}


def blocks_of(live: LiveCoordinator, run: str) -> dict[str, Tensors]:
    return {b["name"]: shard_tensors(live, b["digest"]) for b in live.operator.get(f"/runs/{run}")["blocks"]}


def added(base: Tensors, weight: float, *deltas: Tensors) -> Tensors:
    """base + weight · delta + weight · delta …, every product and every sum rounded to float32, in the order given."""
    result = {name: t.clone() for name, t in base.items()}
    factor = torch.tensor(weight, dtype=torch.float32)
    for delta in deltas:
        for name in base:
            if name in delta:
                result[name] = result[name] + factor * delta[name]
    return result


def same(one: Tensors, other: Tensors) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def pass_deadline(live: LiveCoordinator, run: str) -> None:
    """As if the deltas accepted so far had been accepted a day ago."""
    run_id = live.operator.get(f"/runs/{run}")["id"]
    with live.database.transaction() as session:
        for row in session.scalars(select(models.Assignment).where(models.Assignment.run_id == run_id)):
            if row.judged_at is not None:
                row.judged_at -= timedelta(days=1)


def states(live: LiveCoordinator, run: str) -> dict[str, tuple[str, bool]]:
    """Block → state and whether it is applied, of the newest round; rejected assignments are left out."""
    current = live.operator.get(f"/runs/{run}")["current"]
    return {a["block"]: (a["state"], a["applied"]) for a in current if a["state"] != "rejected"}


def newest(live: LiveCoordinator, run: str) -> Any:
    return live.operator.get(f"/runs/{run}")["rounds"][0]


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Iterator[threading.Event]:
    """An engine function does not begin before the end of the block; the event is set when it would have."""
    began, may_go_on, real = threading.Event(), threading.Event(), getattr(module, name)

    def slow(*arguments: Any) -> Any:
        began.set()
        assert may_go_on.wait(60)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, slow)
        try:
            yield began
        finally:
            may_go_on.set()


@pytest.mark.one_database
def test_a_wave_is_applied_together_damped_and_the_head_averaged(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = start_wave(live, model, hands, cycles=2)
    base = blocks_of(live, run)
    taken = [hand.take(run) for hand in hands]
    assert [a.block for a in taken] == WAVE
    assert len({a.manifest.model_dump_json() for a in taken}) == 1, "all from the same versions"
    assert [b.version for a in taken for b in a.manifest.blocks] == [0] * 15
    deltas = [random_delta(hand, a, seed) for seed, (hand, a) in enumerate(zip(hands, taken, strict=True))]
    for hand, assignment, delta in reversed(list(zip(hands, taken, deltas, strict=True))):
        assert set(versions(live, run).values()) == {0}, "nothing is applied before all are in"
        hand.deliver(assignment, delta)
        settled(live, run)
    after = blocks_of(live, run)
    for block, delta in zip(WAVE, deltas, strict=True):
        assert same(after[block], added(base[block], 0.4, delta)), block
    # In the order of the blocks, though they came the other way round.
    assert same(after["head"], added(base["head"], 0.4 / 3, *deltas))
    assert not same(after["head"], added(base["head"], 0.4 / 3, *reversed(deltas))), "an order that shows"
    assert same(after["pooler"], base["pooler"])
    view = live.operator.get(f"/runs/{run}")
    assert (view["rounds_done"], view["rounds_total"]) == (1, 2)
    assert versions(live, run) == {"embeddings": 1, "layers.0": 1, "layers.1": 1, "pooler": 0, "head": 1}
    first = view["rounds"][1]
    assert (first["blocks"], first["state"], first["applied"]) == (WAVE, "closed", 3)
    again = [hand.take(run) for hand in hands]
    assert {(a.round, a.cycle, a.block) for a in again} == {(1, 1, block) for block in WAVE}
    assert {b.version for b in again[0].manifest.blocks} == {0, 1}


@pytest.mark.one_database
def test_without_damping_a_wave_of_one_is_added_as_it_is(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    base = blocks_of(live, run)
    delta = random_delta(hand, assignment := hand.take(run), 0)
    hand.deliver(assignment, delta)
    settled(live, run)
    after = blocks_of(live, run)
    for block in ("layers.0", "head"):
        assert same(after[block], added(base[block], 1.0, delta))


def test_agents_that_ask_at_once_get_a_block_each(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = start_wave(live, model, hands, agents="first_come")
    taken = together(3, lambda i: hands[i].take(run))  # not at once: the run may have a job to do first
    assert sorted(a.block for a in taken) == WAVE
    view = live.operator.get(f"/runs/{run}")
    assert [(a["block"], a["state"]) for a in view["current"]] == [(block, "leased") for block in WAVE]
    assert {a["agent"] for a in view["current"]} == {hand.name for hand in hands}
    assert (newest(live, run)["blocks"], newest(live, run)["state"]) == (WAVE, "open")


def test_who_has_a_part_in_a_wave_leaves_the_rest_to_the_others(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    for hand in hands:
        hand.me()  # all are there
    run = start_wave(live, model, hands, agents="first_come")
    first = hands[0].take(run)
    hands[0].deliver(first)
    settled(live, run)
    with unchanged(live, run):
        assert hands[0].claim(run) is None
    assert hands[1].take(run).block != first.block
    with unchanged(live, run):
        assert hands[0].claim(run) is None
    assert hands[2].take(run)
    assert live.operator.get(f"/runs/{run}")["rounds_done"] == 0


@pytest.mark.one_database
def test_with_fewer_agents_than_blocks_one_does_several(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    for agents in ("first_come", "rotating"):
        run = start_wave(live, model, [hand, other], agents=agents)
        one, two = hand.take(run), other.take(run)
        hand.deliver(one)
        settled(live, run)
        three = hand.take(run)
        assert {one.block, two.block, three.block} == set(WAVE)
        assert three.manifest == one.manifest, "from the same versions as the others"
        hand.deliver(three)
        other.deliver(two)
        assert settled(live, run)["state"] == "completed"
        assert versions(live, run)["head"] == 1


def test_a_wave_larger_than_the_model_is_one_round_a_cycle(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = live.create_run(run_file(model, hands, schedule={**SCHEDULE, "wave": 99, "cycles": 2}))
    assert run["rounds_total"] == 2


@pytest.mark.one_database
def test_one_member_is_rejected_and_the_others_stay_accepted(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = start_wave(live, model, hands)
    taken = [hand.take(run) for hand in hands]
    base = blocks_of(live, run)
    deltas = [random_delta(hand, a, seed) for seed, (hand, a) in enumerate(zip(hands, taken, strict=True))]
    hands[0].deliver(taken[0], deltas[0])
    bad = {name: t.clone() for name, t in deltas[1].items()}
    bad["classifier.bias"][0] = float("nan")
    hands[1].deliver(taken[1], bad)
    hands[2].deliver(taken[2], deltas[2])
    settled(live, run)
    expected = {"embeddings": ("accepted", False), "layers.0": ("pending", False), "layers.1": ("accepted", False)}
    assert states(live, run) == expected
    assert set(versions(live, run).values()) == {0}
    assert hands[1].claim(run) is None, "it would send the same again"
    again = hands[0].take(run)  # the others have a part each; one of them has to
    assert (again.block, again.train) == (taken[1].block, taken[1].train)
    hands[0].deliver(again, deltas[1])
    assert settled(live, run)["state"] == "completed"
    after = blocks_of(live, run)
    assert same(after["head"], added(base["head"], 0.4 / 3, *deltas))
    assert newest(live, run)["applied"] == 3
    rejected = [a for a in live.operator.get(f"/runs/{run}/assignments") if a["state"] == "rejected"]
    assert [(a["block"], a["applied"]) for a in rejected] == [("layers.0", False)]


def test_after_the_deadline_what_came_is_applied_and_the_rest_is_trained_again(
    live: LiveCoordinator, model: str, hands: list[Hand]
) -> None:
    run = start_wave(live, model, hands, wave_deadline_s=3600)
    base = blocks_of(live, run)
    taken = [hand.take(run) for hand in hands]
    deltas = [random_delta(hand, a, seed) for seed, (hand, a) in enumerate(zip(hands, taken, strict=True))]
    late = save(random_delta(hands[1], taken[1], 99))
    assert hands[1].put(taken[1], late).status_code == 200
    for i in (2, 0):
        hands[i].deliver(taken[i], deltas[i])
    settled(live, run)
    assert set(versions(live, run).values()) == {0}, "the deadline is an hour away"
    pass_deadline(live, run)
    wait_for(lambda: newest(live, run)["applied"] == 2)
    expected = {"embeddings": ("accepted", True), "layers.0": ("pending", False), "layers.1": ("accepted", True)}
    assert states(live, run) == expected
    assert (newest(live, run)["state"], live.operator.get(f"/runs/{run}")["rounds_done"]) == ("open", 0)
    assert versions(live, run) == {"embeddings": 1, "layers.0": 0, "layers.1": 1, "pooler": 0, "head": 1}
    halfway = blocks_of(live, run)
    assert same(halfway["head"], added(base["head"], 0.4 / 2, deltas[0], deltas[2]))
    assert "wave_deadline" in events(live, run)
    with unchanged(live, run):
        refused(hands[1].submit(taken[1], digest_of(late)), 409, "lease_lost")
        refused(hands[1].renew(taken[1]), 409, "lease_lost")
    again = hands[1].take(run)
    assert (again.assignment_id, again.attempt, again.block) == (taken[1].assignment_id, 2, "layers.0")
    assert again.train == taken[1].train
    assert {b.block: b.version for b in again.manifest.blocks} == versions(live, run)
    with unchanged(live, run):
        refused(hands[1].submit(taken[1], digest_of(late)), 409, "stale_attempt")
    hands[1].deliver(again, deltas[1])
    view = settled(live, run)
    assert (view["state"], view["rounds_done"]) == ("completed", 1)
    after = blocks_of(live, run)
    assert same(after["layers.0"], added(base["layers.0"], 0.4, deltas[1]))
    assert same(after["head"], added(halfway["head"], 0.4, deltas[1])), "those that were applied are not applied again"
    assert same(after["embeddings"], halfway["embeddings"])


def test_a_delta_that_is_being_judged_at_the_deadline_is_waited_for(
    live: LiveCoordinator, model: str, hands: list[Hand], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_wave(live, model, hands, wave_deadline_s=3600)
    taken = [hand.take(run) for hand in hands]
    hands[0].deliver(taken[0])
    settled(live, run)
    with held_up(monkeypatch, fedcybgd.coordinator.engine.admit, "admit") as began:
        hands[1].deliver(taken[1])
        assert began.wait(10)
        pass_deadline(live, run)
        threading.Event().wait(5 * live.settings.sweep_every_s)
        assert states(live, run)["layers.1"] == ("leased", False), "nothing is taken back while something is being judged"
        assert hands[2].renew(taken[2]).status_code == 200
    wait_for(lambda: newest(live, run)["applied"] == 2)
    assert versions(live, run) == {"embeddings": 1, "layers.0": 1, "layers.1": 0, "pooler": 0, "head": 1}
    assert states(live, run)["layers.1"] == ("pending", False)


def test_while_a_part_is_applied_the_rest_is_not_given_out(
    live: LiveCoordinator, model: str, hands: list[Hand], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_wave(live, model, hands, wave_deadline_s=3600)
    taken = [hand.take(run) for hand in hands[:2]]
    hands[0].deliver(taken[0])
    settled(live, run)
    with held_up(monkeypatch, fedcybgd.coordinator.engine.apply, "apply") as began:
        pass_deadline(live, run)
        assert began.wait(10)
        assert newest(live, run)["state"] == "applying"
        with unchanged(live, run):
            assert hands[1].claim(run) is None
            assert hands[2].claim(run) is None
    for hand in hands[1:]:
        assert {b.version for b in hand.take(run).manifest.blocks} == {0, 1}, "from the new versions"


def test_a_pause_holds_the_deadline_up(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = start_wave(live, model, hands, wave_deadline_s=3600)
    taken = [hand.take(run) for hand in hands]
    hands[0].deliver(taken[0])
    settled(live, run)
    live.operator.post(f"/runs/{run}/pause")
    pass_deadline(live, run)
    threading.Event().wait(5 * live.settings.sweep_every_s)
    hands[1].deliver(taken[1])
    settled(live, run)
    assert states(live, run)["layers.1"] == ("leased", False)
    assert set(versions(live, run).values()) == {0}
    live.operator.post(f"/runs/{run}/resume")
    wait_for(lambda: newest(live, run)["applied"] == 2)
    hands[2].deliver(hands[2].take(run))
    assert settled(live, run)["state"] == "completed"


def test_a_pause_while_a_part_is_applied(live: LiveCoordinator, model: str, hands: list[Hand], monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_wave(live, model, hands, wave_deadline_s=3600)
    taken = [hand.take(run) for hand in hands]
    for i in (0, 1):
        hands[i].deliver(taken[i])
    settled(live, run)
    with held_up(monkeypatch, fedcybgd.coordinator.engine.apply, "apply") as began:
        pass_deadline(live, run)
        assert began.wait(10)
        live.operator.post(f"/runs/{run}/pause")
    view = settled(live, run)
    assert (view["state"], newest(live, run)["state"], newest(live, run)["applied"]) == ("paused", "open", 2)
    with unchanged(live, run):
        assert hands[2].claim(run) is None
    live.operator.post(f"/runs/{run}/resume")
    hands[2].deliver(hands[2].take(run))
    assert settled(live, run)["state"] == "completed"
    assert versions(live, run) == {"embeddings": 1, "layers.0": 1, "layers.1": 1, "pooler": 0, "head": 2}


def test_a_coordinator_that_dies_while_a_part_is_applied_applies_it_once(
    coordinators: Callable[..., LiveCoordinator], bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = coordinators()
    first.add_model("bert", bert)
    hands = [Hand(first) for _ in range(3)]
    run = start_wave(first, "bert", hands, wave_deadline_s=3600)
    base = blocks_of(first, run)
    taken = [hand.take(run) for hand in hands]
    deltas = [random_delta(hand, a, seed) for seed, (hand, a) in enumerate(zip(hands, taken, strict=True))]
    for i in (0, 1):
        hands[i].deliver(taken[i], deltas[i])
    settled(first, run)
    with held_up(monkeypatch, fedcybgd.coordinator.engine.apply, "apply") as began:
        pass_deadline(first, run)
        assert began.wait(10)
        first.stop()
    second = coordinators()
    wait_for(lambda: newest(second, run)["applied"] == 2)
    assert same(blocks_of(second, run)["head"], added(base["head"], 0.4 / 2, *deltas[:2]))
    for hand in hands:
        hand.http.base_url = second.url + "/v1"
    hands[2].deliver(hands[2].take(run), deltas[2])
    assert settled(second, run)["state"] == "completed"
    assert versions(second, run) == {"embeddings": 1, "layers.0": 1, "layers.1": 1, "pooler": 0, "head": 2}


@pytest.mark.one_database
def test_the_last_one_missing_is_not_hurried(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = start_wave(live, model, hands, wave_deadline_s=3600)
    taken = [hand.take(run) for hand in hands]
    for i in (0, 1):
        hands[i].deliver(taken[i])
    settled(live, run)
    pass_deadline(live, run)
    wait_for(lambda: newest(live, run)["applied"] == 2)
    again = hands[2].take(run)
    threading.Event().wait(5 * live.settings.sweep_every_s)
    assert hands[2].renew(again).status_code == 200, "nothing waits for it, so there is no deadline"
    hands[2].deliver(again)
    assert settled(live, run)["state"] == "completed"


def test_many_waves_end_with_the_right_versions(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = start_wave(live, model, hands, cycles=3, agents="rotating", order="random", wave=2)
    assert live.operator.get(f"/runs/{run}")["rounds_total"] == 6
    finish(live, run, hands)
    assert versions(live, run) == {"embeddings": 3, "layers.0": 3, "layers.1": 3, "pooler": 0, "head": 6}
    assert all(a["applied"] for a in live.operator.get(f"/runs/{run}/assignments"))
    assert state_of(live, run)["run"] == "completed"
