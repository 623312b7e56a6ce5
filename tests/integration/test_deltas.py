"""Deltas that are wrong: refused before they are taken, or rejected when they are judged; the model stays as it was to the byte."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save

from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from tests.support.live import LiveCoordinator
from tests.support.visits import METRICS, Hand, Tensors, events, last_visit, refused, settled, start_run, state_of, unchanged, versions

BIAS = "encoder.layer.0.output.dense.bias"
WEIGHT = "encoder.layer.0.output.dense.weight"


@pytest.fixture(scope="module")
def held(live: LiveCoordinator, model: str) -> tuple[Hand, str, LeasedAssignment]:
    """One assignment for all deltas that are refused: none of them may leave a trace on it."""
    hand = Hand(live)
    run = start_run(live, model, [hand], lease_s=3600)
    return hand, run, hand.take(run)


def changed(change: Callable[[Tensors], Any]) -> Callable[[Tensors], bytes]:
    def spoil(good: Tensors) -> bytes:
        change(good)
        return save(good)

    return spoil


def only(part: str) -> Callable[[Tensors], bytes]:
    return lambda good: save({name: t for name, t in good.items() if part in name})


def renamed(good: Tensors) -> bytes:
    return save({name.replace("layer.0", "layer.1"): t for name, t in good.items()})


def header_says_more(good: Tensors) -> bytes:
    entry = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    raw = json.dumps({WEIGHT: entry}).encode()
    return len(raw).to_bytes(8, "little") + raw


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (changed(lambda t: t.update({BIAS: torch.zeros(31)})), f"{BIAS} has shape [31], must be [32]"),
        (changed(lambda t: t.update({WEIGHT: t[WEIGHT].T.contiguous()})), f"{WEIGHT} has shape [64, 32], must be [32, 64]"),
        (changed(lambda t: t.update({BIAS: torch.zeros(1, 32)})), f"{BIAS} has shape [1, 32]"),
        (changed(lambda t: t.pop(BIAS)), f"missing: {BIAS}"),
        (changed(lambda t: t.update({"extra.weight": torch.zeros(1)})), "foreign: extra.weight"),
        (changed(lambda t: t.update({BIAS: t[BIAS].half()})), f"{BIAS} is F16, must be F32"),
        (changed(lambda t: t.update({BIAS: t[BIAS].bfloat16()})), f"{BIAS} is BF16, must be F32"),
        (changed(lambda t: t.update({BIAS: t[BIAS].double()})), f"{BIAS} is F64, must be F32"),
        (changed(lambda t: t.update({BIAS: torch.zeros(32, dtype=torch.int32)})), f"{BIAS} is I32, must be F32"),
        (changed(lambda t: t.clear()), "missing:"),
        (renamed, "foreign: encoder.layer.1"),
        (only("encoder"), "missing: classifier.bias"),
        (only("classifier"), "missing: encoder.layer.0"),
        (lambda good: save(good)[:-1], "no whole safetensors file"),
        (lambda good: save(good)[:200], "no whole safetensors file"),
        (lambda good: save(good) + b"x", "no whole safetensors file"),
        (lambda good: b"PK\x03\x04 a pickle, say", "no whole safetensors file"),
        (lambda good: (2**63 - 1).to_bytes(8, "little") + b"{}", "no whole safetensors file"),
        (lambda good: b"\x02\0\0\0\0\0\0\0[]", "no whole safetensors file"),
        (header_says_more, "no whole safetensors file"),
    ],
)
def test_a_delta_of_the_wrong_form_is_not_taken(
    live: LiveCoordinator, held: tuple[Hand, str, LeasedAssignment], spoil: Callable[[Tensors], bytes], said: str
) -> None:
    hand, run, assignment = held
    data = spoil(hand.delta(assignment))
    with unchanged(live, run):
        assert said in refused(hand.send(assignment, data), 422, "delta_refused").message
    assert hand.offset(assignment, digest_of(data)) == {"offset": 0, "complete": False}, "nothing of it is kept"
    assert not live.store.has(digest_of(data))
    assert hand.renew(assignment).status_code == 200, "the lease goes on"


def test_after_a_refused_delta_a_good_one_is_taken(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    refused(hand.send(assignment, b"not a delta"), 422, "delta_refused")
    hand.deliver(assignment)
    assert settled(live, run)["rounds_done"] == 1


def filled(name: str, value: float) -> Callable[[Tensors], None]:
    def fill(good: Tensors) -> None:
        good[name].flatten()[0] = value

    return fill


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (filled(BIAS, float("nan")), f"non_finite: {BIAS} in block layers.0"),
        (filled(WEIGHT, float("inf")), f"non_finite: {WEIGHT} in block layers.0"),
        (filled(WEIGHT, float("-inf")), f"non_finite: {WEIGHT} in block layers.0"),
        (filled("classifier.weight", float("nan")), "non_finite: classifier.weight in block head"),
        (filled(WEIGHT, 1e6), "norm: the delta of layers.0"),
        (filled(WEIGHT, 3e38), "norm: the delta of layers.0"),
    ],
)
def test_a_delta_of_wrong_numbers_is_rejected_and_another_agent_is_asked(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand, spoil: Callable[[Tensors], None], reason: str
) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    assignment = hand.take(run)
    blocks = state_of(live, run)["blocks"]
    tensors = hand.delta(assignment)
    spoil(tensors)
    data = save(tensors)
    receipt = hand.send(assignment, data)
    assert receipt.status_code == 202
    view = settled(live, run)
    first, second = live.operator.get(f"/runs/{run}/assignments")
    assert (first["id"], first["state"]) == (assignment.assignment_id, "rejected")
    assert first["reason"].startswith(reason)
    assert (second["state"], second["block"], second["meant_for"]) == ("pending", "layers.0", None)
    assert (view["state"], state_of(live, run)["blocks"]) == ("running", blocks)
    assert "delta_rejected" in events(live, run)
    said = next(a for a in live.operator.get("/status")["alarms"] if (a["code"], a["run"]) == ("deltas_rejected", run))
    assert said["message"].startswith(f"1 delta of {run} was rejected within a day, of {hand.name}; the last: delta of {hand.name}")
    assert hand.submit(assignment, digest_of(data)).json() == receipt.json(), "a repeat is answered as before"
    assert hand.claim(run) is None, "seeds do not come from the attempt: it would send the same again"
    assert hand.http.get(f"/assignments/{assignment.assignment_id}").json()["state"] == "rejected"
    again = other.take(run)
    assert again.assignment_id != assignment.assignment_id
    assert again.train == assignment.train
    other.deliver(again)
    assert settled(live, run)["rounds_done"] == 1
    assert versions(live, run)["layers.0"] == 1


def test_a_run_whose_only_agent_was_rejected_is_paused(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    tensors = hand.delta(assignment := hand.take(run))
    tensors[BIAS][0] = float("nan")
    hand.deliver(assignment, tensors)
    view = settled(live, run)
    assert view["state"] == "paused"
    assert "non_finite" in view["reason"]
    live.operator.post(f"/runs/{run}/resume")
    hand.deliver(hand.take(run))
    assert settled(live, run)["rounds_done"] == 1


def test_the_norm_is_no_matter_where_the_run_file_says_so(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], admission={"max_relative_norm": None})
    tensors = hand.delta(assignment := hand.take(run))
    tensors[WEIGHT][0, 0] = 1e6
    hand.deliver(assignment, tensors)
    settled(live, run)
    assert versions(live, run)["layers.0"] == 1


def test_finite_deltas_cannot_add_up_to_infinity(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    for rounds, state in ((1, "running"), (1, "paused")):
        tensors = hand.delta(assignment := hand.take(run))
        tensors["classifier.weight"].fill_(3e38)  # the head is trained along: its norm is no matter
        hand.deliver(assignment, tensors)
        view = settled(live, run)
        assert (view["state"], view["rounds_done"]) == (state, rounds)
    assert last_visit(live, run)["reason"] is None
    assert "classifier.weight" in view["reason"]


def test_bytes_that_are_not_their_digest_are_not_taken(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    data, wrong = save(hand.delta(assignment)), digest_of(b"something else")
    hand.put(assignment, data, digest=wrong)
    with unchanged(live, run):
        error = refused(hand.submit(assignment, wrong), 422, "digest_mismatch")
    assert error.detail == {"expected": wrong, "actual": digest_of(data)}
    assert hand.offset(assignment, wrong) == {"offset": 0, "complete": False}
    assert not live.store.has(wrong)
    assert not live.store.has(digest_of(data))


def test_what_the_coordinator_has_anyway_is_no_delta(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    held = [b.digest for b in assignment.manifest.blocks] + [f.digest for f in assignment.manifest.files]
    with unchanged(live, run):
        for digest in held:  # never uploaded, but in the store under their names
            refused(hand.submit(assignment, digest), 409, "upload_incomplete")
    assert all(live.store.has(digest) for digest in held)
    assert live.operator.get(f"/runs/{run}")["state"] == "running"


@pytest.mark.parametrize(
    "change", [{"attempt": "x"}, {"digest": "x"}, {"metrics": None}, {"rows": ["my data"]}, {"metrics.loss_last": 1e999}]
)
def test_a_submission_that_is_none_changes_nothing(live: LiveCoordinator, model: str, hand: Hand, change: dict[str, Any]) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    hand.put(assignment, data)
    body: dict[str, Any] = {"attempt": 1, "digest": digest_of(data), "metrics": METRICS.model_dump(mode="json")}
    for path, value in change.items():
        section, _, field = path.rpartition(".")
        (body[section] if section else body)[field] = value
    with unchanged(live, run):
        path = f"/assignments/{assignment.assignment_id}/delta"
        answer = hand.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        refused(answer, 422, "invalid_request")
    assert hand.submit(assignment, digest_of(data)).status_code == 202
