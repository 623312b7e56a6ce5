"""The diagnosis of a run: each symptom is seen in what shows it, and in nothing else."""

from collections import Counter
from typing import Any

import pytest

from fedcybgd.coordinator.domain.diagnosis import ATTEMPT_CODES, MENDED_BY, SYMPTOMS, diagnose, kind_of
from fedcybgd.coordinator.domain.diagnosis_facts import DiagnosisFacts
from fedcybgd.coordinator.domain.held_up import Held, seen
from fedcybgd.shared.contract.measured import Score

STEADY = [2.0, 1.9, 1.85, 1.8, 1.78, 1.75, 1.7]
OTHERS = {"ann": [("a", 0.1), ("b", 1.0), ("a", 0.1)], "bob": [("a", 0.11), ("b", 1.2), ("b", 1.2)], "max": [("c", 9.0)] * 3}
"""Blocks take unlike long, and nobody but max trains c."""
HEALTHY: dict[str, Any] = {
    "token_seconds": OTHERS,
    "losses": STEADY, "judged": 20, "memory": {"ann": (10, 100), "bob": (10, 0)},
    "cosines": {"layers.0 in int8": 0.99}, "failures": {"ann": Counter({"lease_lapsed": 1})}, "still": {"apply": 5.0},
    "held": [Held("ann", "head", 40, 90, "training"), Held("bob", "norm", 3, 90, "sending", "transfers were cut", 5)], "cut": {"ann": Counter({"unreachable": 1})},
    "scores": [Score(loss=loss, accuracy=None, rows=1, seconds=0) for loss in STEADY],
}  # fmt: skip
# symptom → facts that show it, a word of its evidence, a word of its advice
SHOWN: dict[str, tuple[dict[str, Any], str, str]] = {
    "loss_out_of_proportion": ({"losses": [*STEADY, 9.0]}, "1.7 to 9", "rollback"),
    "engine_hangs": ({"still": {"apply": 61.0}}, "61 s", "begun again"),
    "free_rider": ({"told": {"free_rider": "eve may not have trained"}}, "eve", "without"),
    "deltas_out_of_band": ({"rejected": [("eve", "norm: the delta of layers.0 has 12 times")]}, "1 × norm", "learning rate"),
    "deltas_rejected": ({"rejected": [("eve", "replay: the same delta"), ("eve", "replay: the same delta")]}, "2 × replay; from 2 × eve", "rule"),
    "agents_fail": ({"failures": {"eve": Counter({"out_of_memory": 3})}}, "eve: 3 × out_of_memory", "batch_size"),
    "held_up": ({"held": [Held("eve", "head", 50, 90, "sending")]}, "eve said 50 s ago that it is sending, at head", "proxy"),
    "quarantined": ({"quarantined": {"eve": "noon"}}, "eve until noon", "release"),
    "agents_unfit": ({"unfit": {"eve": "data_invalid", "dan": "out_of_memory"}}, "dan (out_of_memory); eve (data_invalid)", "batch_size"),
    "loss_rising": ({"losses": [*STEADY, 1.75, 1.8]}, "2 rounds ago it was 1.7", "learning_rate"),
    "label_skew": ({"told": {"label_skew": "unlike: do this"}}, "unlike", "after this one"),
    "labels_forgotten": ({"told": {"labels_forgotten": "none is right; do this"}}, "none", "after this one"),
    "single_label": ({"told": {"single_label": "one label"}}, "one label", "leave"),
    "emulator_unfaithful": ({"cosines": {"layers.0 in int4": 0.3}}, "0.30", "faithful"),
    "agents_slow": ({"token_seconds": {**OTHERS, "eve": [("a", 0.5), ("b", 5.0), ("b", 0.1)]}}, "eve takes 4.2 times", "steps"),
    "memory_near_limit": ({"memory": {"eve": (95, 100)}}, "eve", "memory_gb"),
    "score_flat": ({"scores": [Score(loss=1.0, accuracy=None, rows=1, seconds=0)] * 6}, "last 5 scores", "stop"),
    "unmeasured": ({"unmeasured": 2}, "2 could not be measured", "status"),
}  # fmt: skip


def test_a_healthy_run_shows_nothing() -> None:
    assert diagnose(DiagnosisFacts(**HEALTHY)) == []
    assert diagnose(DiagnosisFacts()) == []


def test_every_line_of_the_table_is_tried_here() -> None:
    assert SHOWN.keys() == {symptom.code for symptom in SYMPTOMS}
    assert [symptom.code for symptom in SYMPTOMS if not symptom.threshold] == []
    assert MENDED_BY.keys() <= ATTEMPT_CODES, "advice for what never happens"


BAND, OF_BLOCK = "norm: the delta of layers.0 has 12 times", "norm: the delta of layers.0 has norm 1e4, more than 10 times its block's 75"


@pytest.mark.parametrize(
    ("reasons", "settings"),
    [([BAND], {"norm_band"}), ([OF_BLOCK], {"max_relative_norm"}), ([BAND, OF_BLOCK], {"norm_band", "max_relative_norm"})],
)
def test_the_setting_that_is_named_is_the_one_that_has_rejected(reasons: list[str], settings: set[str]) -> None:
    (found,) = diagnose(DiagnosisFacts(rejected=[("eve", reason) for reason in reasons], judged=9))
    assert {word for word in ("norm_band", "max_relative_norm") if word in found.advice} == settings


@pytest.mark.parametrize("code", SHOWN)
def test_a_symptom_is_seen_with_evidence_and_advice_and_alone(code: str) -> None:
    shown, evidence, advice = SHOWN[code]
    found = {one.symptom.code: one for one in diagnose(DiagnosisFacts(**{**HEALTHY, **shown}))}
    # A jump is a rise too.
    assert found.keys() == ({code, "loss_rising"} if code == "loss_out_of_proportion" else {code})
    assert evidence in found[code].evidence
    assert advice in found[code].advice


def test_alarms_come_first_and_a_floor_of_the_run_file_counts() -> None:
    worst = diagnose(DiagnosisFacts(losses=[*STEADY, 9.0], unmeasured=1, quarantined={"eve": "noon"}))
    assert [one.symptom.level for one in worst] == ["alarm", "warning", "warning", "note"]
    assert diagnose(DiagnosisFacts(cosines={"x": 0.3}, floor=0.2)) == []
    assert [one.symptom.code for one in diagnose(DiagnosisFacts(cosines={"x": 0.8}, floor=0.9))] == ["emulator_unfaithful"]


def test_reasons_have_only_so_many_kinds() -> None:
    said = {"norm: far": "norm", "gate: rose": "gate", "run_cancelled": "run_cancelled", "": "other", "layers.0 has NaN: at 3": "other"}
    assert {reason: kind_of(reason) for reason in said} == said


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (Held("eve", "head", 19.9, 30), None),
        (Held("eve", "head", 149, 300), None),
        (Held("eve", "head", 20.0, 30), "eve took head 20 s ago and has said nothing since: its claim arrived, no renewal has"),
        (Held("eve", "head", 2, 90, "fetching", "transfers were cut", 29), None),
        (Held("eve", "head", 2, 90, "fetching", "transfers were cut", 31), "eve is held up while fetching, at head, for 31 s: transfers were cut"),
    ],
)  # fmt: skip
def test_who_is_held_up_is_named_with_what_is_seen(held: Held, said: str | None) -> None:
    assert seen([held], {}) == ([] if said is None else [said])


def test_who_was_held_up_again_and_again_is_named_once() -> None:
    cut = {
        "ann": Counter({"unreachable": 1}),
        "eve": Counter({"unreachable": 2, "proxy_body_limit": 1}),
        "bob": Counter({"unreachable": 2}),
    }
    assert seen([], cut)[1] == "eve was held up 3 times: 2 × unreachable, 1 × proxy_body_limit"
    assert [line.split()[0] for line in seen([Held("eve", "head", 99, 90)], cut)] == ["eve", "bob"]
