"""Unlike labels are noticed, a head is put together by them, and counts that cannot be are refused."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedcybgd.coordinator.domain.label_skew import UNLIKE, LabelCountsInvalid, by_label, check_counts, divergence, forgets, remedy
from fedcybgd.coordinator.domain.label_tally import LabelTally
from fedcybgd.coordinator.domain.methods.method import Delivered
from fedcybgd.coordinator.domain.methods.terms import VisitDelta, terms_of
from fedcybgd.coordinator.domain.run_file import RunFile, RunFileInvalid, checked
from fedcybgd.shared.contract.training import ParameterGroup, TrainMetrics, TrainSettings
from tests.unit.test_apply import Change, Term, delta, normal, open_store, put
from tests.unit.test_apply import run as applied


def said(counts: list[int] | None, rows: int | None = None) -> TrainMetrics:
    values = {"steps": 1, "tokens": 1, "loss_first": 1.0, "loss_last": 1.0, "seconds": 1.0, "tokens_per_s": 1.0}
    return TrainMetrics(rows=rows if rows is not None else sum(counts or []), label_counts=counts, **values)  # type: ignore[arg-type]


def spec(schedule: dict[str, Any] | None = None, **sections: Any) -> RunFile:
    wave = {"wave": 3, "damping": 0.4, "always": ["head"]} | (schedule or {})
    return checked({"name": "r", "model": "m", "task": {"kind": "text-classification", "labels": 4}, "schedule": wave, **sections})


def terms(spec: RunFile, *counts: list[int] | None, block: str = "head", moved: list[list[int] | None] | None = None) -> list[Term]:
    looked = moved or [None] * len(counts)
    deltas = [VisitDelta(f"{n}" * 64, f"asg_{n}", Delivered(n, said(c, n + 1), n + 1, looked[n])) for n, c in enumerate(counts)]
    return terms_of(spec, block, deltas, len(deltas))[0]


COUNTS: list[list[int]] = [[6, 0, 0, 1], [2, 5, 0, 0], [0, 5, 0, 1]]


def test_a_heads_rows_are_weighed_by_who_has_rows_of_their_label() -> None:
    found = terms(spec(), *COUNTS)
    shares = [[6 / 8, 0, 1 / 3, 1 / 2], [2 / 8, 1 / 2, 1 / 3, 0], [0, 1 / 2, 1 / 3, 1 / 2]]
    for term, expected in zip(found, shares, strict=True):
        assert term.rows == pytest.approx(expected)
    assert [term.weight for term in found] == [1 / 3] * 3, "of what has no row for a label: the mean, undamped"


def test_where_labels_are_not_told_a_row_is_the_mean_of_those_that_move_it() -> None:
    moved: list[list[int] | None] = [[0, 3], [0, 1], [1, 3]]
    found = terms(spec(), COUNTS[0], None, None, moved=moved)
    shares = [[1 / 2, 0, 1 / 3, 1 / 2], [1 / 2, 1 / 2, 1 / 3, 0], [0, 1 / 2, 1 / 3, 1 / 2]]
    for term, expected in zip(found, shares, strict=True):
        assert term.rows == pytest.approx(expected)
    assert [term.rows for term in terms(spec(), None, None, moved=[[0], None])] == [[]] * 2, "of one nobody knows"
    of_rows = checked({"name": "r", "model": "m", "method": "whole", "task": {"kind": "text-classification", "labels": 4}})
    assert [term.rows for term in terms(of_rows, None, None, moved=[[0, 1], [0]])] == [
        pytest.approx([1 / 3, 1, 1 / 2, 1 / 2]), pytest.approx([2 / 3, 0, 1 / 2, 1 / 2]),
    ]  # fmt: skip
    many = checked({"name": "r", "model": "m", "method": "whole", "task": {"kind": "text-classification", "labels": 4097}})
    assert not by_label(many)


@pytest.mark.parametrize(
    ("schedule", "counts", "block", "weight"),
    [
        ({"head_average": "mean"}, COUNTS, "head", 1 / 3), ({"head_average": "damped"}, COUNTS, "head", 0.4 / 3),
        ({}, [COUNTS[0], None, COUNTS[2]], "head", 1 / 3), ({}, [COUNTS[0]], "head", 1.0), ({"always": ["head", "pooler"]}, COUNTS, "pooler", 0.4 / 3),
        ({}, [COUNTS[0]], "layers.0", 0.4), ({"wave": 1, "always": ["pooler"]}, [COUNTS[0]], "head", 0.4),
    ],
)  # fmt: skip
def test_where_labels_do_not_count_all_rows_weigh_the_same(schedule: dict[str, Any], counts: Any, block: str, weight: float) -> None:
    found = terms(spec(schedule), *counts, block=block)
    assert [term.rows for term in found] == [[]] * len(counts)
    assert [term.weight for term in found] == [weight] * len(counts)


def test_a_robust_mean_goes_before_labels_unless_both_are_asked_for() -> None:
    assert [term.rows for term in terms(spec(admission={"average": "median"}), *COUNTS)] == [[]] * 3
    with pytest.raises(RunFileInvalid, match=r"schedule\.head_average: by_label is a mean"):
        spec({"head_average": "by_label"}, admission={"average": "median"})
    with pytest.raises(RunFileInvalid, match=r"schedule\.head_average: causal-lm has no labels"):
        checked({"name": "r", "model": "m", "task": {"kind": "causal-lm"}, "schedule": {"head_average": "by_label"}})


@pytest.mark.parametrize("labels", [4, 5])
def test_each_row_of_a_head_is_what_its_own_weights_make_of_it(tmp_path: Path, labels: int) -> None:
    """With as many labels as another layer of the head has rows nobody can tell which is which: then all weigh the same."""
    store = open_store(tmp_path / "blobs")
    head = {"dense.weight": normal(5, 5), "out.bias": normal(labels, seed=1), "out.weight": normal(labels, 5, seed=2)}
    block = put(store, "head", head)
    weights = [[0.75, 0.25, 0.0, 1.0, 0.5][:labels], [0.25, 0.75, 1.0, 0.0, 0.5][:labels]]
    folders = {seed: tmp_path / f"{seed}" for seed in (5, 6)}
    for folder in folders.values():
        folder.mkdir()
    made = [delta(store, folder, "int8", True, seed, head) for seed, folder in folders.items()]
    change = Change(block=block, terms=[Term(digest=d, weight=0.5, rows=w) for (d, _), w in zip(made, weights, strict=True)])
    found = load_file(store.path(applied(store, change).blocks[0].digest))
    for name, base in head.items():
        expected = base.clone()
        for (_, meant), rows in zip(made, weights, strict=True):
            by_row = torch.tensor(rows) if name.startswith("out") and labels == 4 else torch.full((len(base),), 0.5)
            for row in range(len(base)):
                expected[row] += by_row[row] * meant[name][row]
        assert torch.equal(found[name], expected), name
    halved = change.terms[0].scaled(0.5)
    assert (halved.weight, halved.rows) == (0.25, [weight / 2 for weight in weights[0]])


TRAIN = TrainSettings(
    task="text-classification", num_labels=4, max_length=8, groups=[ParameterGroup(blocks=["head"], learning_rate=1.0)], seed=1
)


@pytest.mark.parametrize(
    ("counts", "rows"), [([1, 2, 3], 6), ([1, 2, 3, 4, 0], 10), ([1, 2, 3, 4], 9), ([1, 2, 3, 4], 11), ([17, 0, 0, 0], 17)]
)
def test_counts_that_cannot_be_are_refused(counts: list[int], rows: int) -> None:
    check_counts(TRAIN, said([1, 2, 3, 4], 10))
    check_counts(TRAIN, said(None, 10))
    with pytest.raises(LabelCountsInvalid, match="label_counts: "):
        check_counts(TRAIN, said(counts, rows))
    with pytest.raises(LabelCountsInvalid):
        check_counts(TRAIN.model_copy(update={"task": "causal-lm", "num_labels": None}), said(counts, rows))


def dealt(labels: int, rows: int, agents: int, alpha: float | None) -> list[list[int]]:
    """Rows of each label dealt out in shares of a Dirichlet distribution; None: equal ones."""
    draw = random.Random(f"{labels}:{alpha}")
    counts = [[0] * labels for _ in range(agents)]
    for label in range(labels):
        shares = [1.0 if alpha is None else draw.gammavariate(alpha, 1) for _ in range(agents)]
        for _ in range(rows // labels):
            counts[draw.choices(range(agents), shares)[0]][label] += 1
    return counts


def test_divergence_is_nought_for_like_labels_and_one_for_others() -> None:
    assert divergence([[50, 50], [500, 500]]) == 0
    assert divergence([[10_000, 0], [0, 10_000]]) == pytest.approx(1, abs=1e-3)
    assert divergence([[5, 5]]) == divergence([]) == divergence([[0, 0], [3, 4]]) == 0
    counts = [[300, 100], [100, 500]]
    whole = [400, 600]
    mutual = sum(c / 1000 * math.log(c / 1000 / (sum(row) / 1000 * whole[i] / 1000)) for row in counts for i, c in enumerate(row))
    most = -0.4 * math.log(0.4) - 0.6 * math.log(0.6)
    assert divergence(counts) == pytest.approx((mutual - 1 / 2000) / most)


@pytest.mark.parametrize(("labels", "rows", "agents"), [(77, 1500, 6), (77, 300, 6), (10, 2000, 20), (151, 3000, 3), (2, 60, 4)])
def test_random_shares_are_not_called_unlike_and_skewed_ones_are(labels: int, rows: int, agents: int) -> None:
    assert divergence(dealt(labels, rows, agents, None)) < UNLIKE
    assert labels == 2 or divergence(dealt(labels, rows, agents, 0.3)) > UNLIKE
    disjoint = [[rows // labels if label % agents == agent else 0 for label in range(labels)] for agent in range(min(agents, labels))]
    assert divergence(disjoint) > UNLIKE


@pytest.mark.parametrize(
    ("losses", "held_out", "never_right", "skewed"),
    [
        ([5.0, 3.0, 4.0], 77, 20, True), ([5.0, 5.3], 2, 1, True), ([5.0, 3.0, 2.0], 77, 60, False), ([5.0, 3.0, 3.1], 77, 60, False),
        ([5.0, 3.0, 4.0], 77, 3, False), ([0.7, 0.9], 2, 0, False), ([], 77, 60, False),
    ],
)  # fmt: skip
def test_forgetting_is_a_loss_that_rose_and_labels_that_are_never_right(
    losses: list[float], held_out: int, never_right: int, skewed: bool
) -> None:
    assert forgets(losses, held_out, never_right) == skewed


def test_the_remedy_names_what_is_not_set_yet() -> None:
    worst = spec({"head_average": "damped"}, train={"label_skew": "none"})
    assert (
        "train.label_skew: smoothed; schedule.head_start: class_means, if the model's head is fresh; schedule.head_average: by_label"
        in remedy(worst)
    )
    assert remedy(spec({"head_start": "class_means"})).startswith("the run file allows for it already")
    assert "head_average" not in remedy(spec({"wave": 1}, train={"label_skew": "none"}))


def test_scores_by_label_are_what_counting_by_hand_gives() -> None:
    labels, guesses = [0, 0, 1, 2, 2, 2], [0, 1, 1, 3, 3, 3]
    tally = LabelTally.empty(5)
    tally.add(labels[:2], guesses[:2])
    tally.add(labels[2:], guesses[2:])
    right = Counter(a for a, b in zip(labels, guesses, strict=True) if a == b)
    f1 = [2 * right[c] / (labels.count(c) + guesses.count(c)) for c in set(labels)]
    assert (tally.held_out, tally.never_right, tally.accuracy) == (3, 1, 1 / 3)
    assert tally.macro_f1 == pytest.approx(sum(f1) / 3)
