"""The anchor of a run trains pooler and head alone, as often, on as many rows, at the rates that the run has for its head."""

from typing import Any

import pytest

from fedcybgd.coordinator.domain.anchor import AnchorRefused, head_only
from fedcybgd.coordinator.domain.methods.registry import rounds_in
from fedcybgd.coordinator.domain.run_file import RunFile, checked

LAYERS = [f"layers.{number}" for number in range(6)]
EVALUATE = {"held_out": "test.jsonl", "digest": "a" * 64}


def run(**more: Any) -> RunFile:
    return checked({
        "name": "intents", "model": "minilm", "task": {"kind": "text-classification", "labels": 3},
        "schedule": {"cycles": 4, "blocks": ["layers"], "always": ["pooler", "head"], "agents": "fixed"},
        "train": {"epochs": 2, "batch_size": 32, "learning_rate": 6e-4, "learning_rate_decay": 0.75, "always_learning_rate": 2e-3,
                  "always_learning_rate_decay": 0.5, "label_skew": "mask"},
        "evaluate": EVALUATE, "keep_best": True, "average_versions": {"last": 0.5}, "agents": ["a", "b"], "seed": 3,
    } | more)  # fmt: skip


WAVES = {"cycles": 4, "blocks": ["layers"], "always": ["pooler", "head"], "wave": 3, "damping": 0.4}


@pytest.mark.parametrize("schedule", [None, WAVES], ids=["strict", "waves"])
def test_a_block_cycle_is_measured_against_as_many_visits(schedule: dict[str, Any] | None) -> None:
    spec = run(**({"schedule": schedule} if schedule else {}))
    anchor = head_only(spec, LAYERS)
    assert rounds_in(anchor, ["head"]) == 4 * 6, "a visit for each of the run's"
    assert (anchor.schedule.blocks, anchor.schedule.always, anchor.schedule.wave) == (["head"], ["pooler"], 1)
    assert anchor.schedule.agents == "rotating", "a head that one agent alone has trained is no anchor"
    train = anchor.train
    assert train.learning_rate == train.always_learning_rate == 2e-3
    assert train.learning_rate_decay**6 == pytest.approx(0.5)
    assert (train.epochs, train.batch_size, train.label_skew) == (2, 32, "mask")
    assert (anchor.name, anchor.seed, anchor.agents) == ("intents-head", 3, ["a", "b"])
    assert anchor.evaluate is not None
    assert anchor.evaluate.every == 6, "scored as often, so that as many scores choose its model"
    assert (anchor.keep_best, anchor.average_versions, anchor.evaluate.digest) == (True, spec.average_versions, "a" * 64)


def test_whole_models_and_adapters_are_measured_against_heads_that_are_averaged() -> None:
    averaged = {"schedule": {"cycles": 9, "blocks": ["layers"], "always": ["head"]}, "method": "whole", "whole": {"fraction": 0.5}}
    anchor = head_only(run(**averaged), LAYERS)
    assert (anchor.method, anchor.whole, rounds_in(anchor, ["head"])) == ("whole", run(**averaged).whole, 9)
    assert (anchor.schedule.always, anchor.train.learning_rate_decay) == ([], 0.5)
    factors = {
        "method": "adapters", "schedule": {"cycles": 9, "always": ["head"]}, "compression": {"policy": "int4"},
        "adapters": {"rank": 4, "fraction": 0.25, "weights": "equal"},
    }  # fmt: skip
    anchor = head_only(run(**factors), ["adapters"])
    assert anchor.whole is not None
    assert (anchor.method, anchor.whole.fraction, anchor.whole.weights, anchor.compression.policy) == ("whole", 0.25, "equal", "none")
    assert (anchor.adapters, rounds_in(anchor, ["head"])) == (None, 9)
    handed = head_only(run(**factors | {"adapters": {"combine": "handed"}}), ["adapters"])
    assert (handed.method, handed.schedule.cycles, handed.compression.policy) == ("block-cycle", 9, "int4")


def test_no_layer_is_left_out_of_what_a_head_alone_learns_from() -> None:
    anchor = head_only(run(compression={"policy": "hybrid", "floor": 0.8}), LAYERS)
    assert (anchor.compression.policy, anchor.compression.floor) == ("int8", None)


@pytest.mark.parametrize(("spec", "visited", "why"), [
    (run(schedule={"always": ["head"]}), ["pooler"], "its own anchor"),
    (run(schedule={"always": []}), LAYERS, "no head of its own"),
    (run(schedule={"cycles": 2000, "always": ["head"]}), LAYERS, "12,000 visits"),
])  # fmt: skip
def test_what_has_no_anchor_is_refused(spec: RunFile, visited: list[str], why: str) -> None:
    with pytest.raises(AnchorRefused, match=why):
        head_only(spec, visited)
