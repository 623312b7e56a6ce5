"""A calibrated head: what is fitted against an optimum that is known, what is said of it on rows it was not fitted to, and the bytes of it."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fedcybgd.coordinator.domain.candidates import calibration_helps
from fedcybgd.coordinator.domain.jobs.candidates import HeadCalibration
from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload
from fedcybgd.coordinator.domain.run_file import RunFileInvalid, parse_run_file
from fedcybgd.coordinator.engine import head_calibration
from fedcybgd.coordinator.engine.evaluate import HeldOutLogits
from fedcybgd.coordinator.engine.head_calibration import MOST, PENALTY, calibrated, cross_fitted, fit, halves, shift_helps
from fedcybgd.coordinator.storage import BlobStore
from fedcybgd.shared.contract.measured import Score
from tests.unit.test_apply import normal, put, store

__all__ = ["store"]


def sure(rows: int, right: float, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two labels, as often each; the model is always `margin` sure of one, and right in so many of all cases."""
    labels = torch.arange(rows) % 2
    wrong = torch.arange(rows) // 2 % 10 >= round(10 * right)
    guesses = torch.where(wrong, 1 - labels, labels)
    return functional.one_hot(guesses, 2).double() * margin, labels


def test_the_fit_is_the_optimum_that_is_known() -> None:
    """Who is right in eight of ten cases is to be so sure: a margin of log 4, whatever it was."""
    for margin in (0.2, 3.0, 40.0):
        scale, shift = fit(*sure(200, 0.8, margin))
        assert scale * margin == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-4)
        assert shift == pytest.approx([0.0, 0.0], abs=1e-5)
    assert fit(*sure(200, 0.8, 3.0), with_shift=False) == (pytest.approx(1.386294 / 3, abs=1e-5), [])


def test_nothing_near_it_is_better_and_it_is_the_same_twice() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = 5 * torch.randn(60, 3, generator=draw, dtype=torch.float64), torch.randint(3, (60,), generator=draw)

    def loss(scale: float, shift: list[float]) -> float:
        b = torch.tensor(shift, dtype=torch.float64)
        return float(functional.cross_entropy(scale * logits + b, labels) + PENALTY * b.square().sum())

    scale, shift = fit(logits, labels)
    assert fit(logits, labels) == (scale, shift)
    best = loss(scale, shift)
    for step in (1e-3, -1e-3):
        assert loss(scale + step, shift) > best
        for label in range(3):
            assert loss(scale, [one + step * (at == label) for at, one in enumerate(shift)]) > best


@pytest.mark.parametrize(("margin", "expected"), [(1e-3, MOST), (-5.0, 1 / MOST)], ids=["always right", "always wrong"])
def test_the_scale_is_bounded_where_there_is_no_optimum(margin: float, expected: float) -> None:
    """The further, the better: of logits that are hardly apart and all right it would be infinite, which no file can hold."""
    scale, shift = fit(*sure(40, 1.0, margin))
    assert scale == expected
    assert all(map(math.isfinite, shift))


def test_no_row_tells_of_itself() -> None:
    """Each row's logits are those that come of the other half."""
    draw = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(40, 2, generator=draw, dtype=torch.float64), torch.arange(40) % 2
    found = cross_fitted(logits, labels)
    half = halves(40)
    assert half.sum() == 20
    for number in (0, 1):
        scale, shift = fit(logits[half != number], labels[half != number])
        assert torch.equal(found[half == number], scale * logits[half == number] + torch.tensor(shift, dtype=torch.float64))


def test_a_head_of_noise_gains_nothing_that_is_told() -> None:
    """Fitted to the rows that it is measured on it would seem to: with as many labels as that, on so few rows. On the mean of many draws."""
    gains = []
    for seed in range(20):
        logits, labels = torch.zeros(40, 10, dtype=torch.float64), torch.randint(10, (40,), generator=torch.Generator().manual_seed(seed))
        scale, shift = fit(logits, labels)
        plain = functional.cross_entropy(logits, labels)
        own = functional.cross_entropy(scale * logits + torch.tensor(shift, dtype=torch.float64), labels)
        gains.append(torch.stack([plain - own, plain - functional.cross_entropy(cross_fitted(logits, labels), labels)]))
    own, honest = torch.stack(gains).mean(0)
    assert own > 0.05
    assert honest < 0


def test_labels_are_shifted_where_the_loss_is_lower_for_it_and_no_answer_is_lost() -> None:
    """Rows of label 0; the more an answer is `sure`, the lower the loss, where it is right."""
    labels = torch.zeros(4, dtype=torch.int64)

    def answers(*margins: float) -> torch.Tensor:
        return torch.tensor([[margin, 0.0] for margin in margins], dtype=torch.float64)

    plain = answers(1, 1, 1, -1)
    assert shift_helps(plain, answers(2, 2, 2, -0.5), labels)
    assert shift_helps(plain, answers(1, 1, 1, 1), labels), "one more"
    assert not shift_helps(plain, answers(0.5, 0.5, 0.5, -1), labels), "a higher loss"
    assert not shift_helps(plain, answers(5, 5, -0.1, -0.1), labels), "one less, for all its lower loss"


@pytest.mark.parametrize(("unequal", "bias", "shifted"), [(True, True, True), (False, True, False), (True, False, False)])
def test_a_shift_is_only_where_it_helps(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, unequal: bool, bias: bool, shifted: bool
) -> None:
    """Of an unsure model, of rows that have equally many of both labels, or mostly the first. A head without a bias has none."""
    labels = torch.arange(60) % (5 if unequal else 2) // (4 if unequal else 1)
    logits = torch.randn(60, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits[range(60), labels] += 1
    monkeypatch.setattr(head_calibration, "held_out_logits", lambda *_: HeldOutLogits(logits, labels))
    tensors = {"score.weight": normal(2, 4)} | ({"score.bias": normal(2)} if bias else {})
    payload = EvaluatePayload.model_construct(num_labels=2, blocks=[put(store, "head", tensors)])
    made = head_calibration.calibrate(store, payload, "last")
    assert made is not None
    assert len(made.calibration.shift) == (2 if bias else 0)
    assert any(made.calibration.shift) is shifted
    assert shifted or made.after.accuracy == made.before.accuracy


@pytest.mark.parametrize("bias", ["classifier.bias", None])
def test_the_last_matrix_and_its_bias_are_others_and_nothing_else(store: BlobStore, bias: str | None) -> None:
    tensors = {"dense.weight": normal(4, 4).to(torch.bfloat16), "classifier.weight": normal(3, 4, seed=1).to(torch.bfloat16)}
    if bias is not None:
        tensors[bias] = normal(3, seed=2)
    ref = put(store, "head", tensors)
    shift = [0.25, -0.5, 0.0] if bias is not None else []
    how = HeadCalibration(weight="classifier.weight", bias=bias, scale=0.3, shift=shift)
    made = calibrated(store, ref, how)
    assert calibrated(store, ref, how) == made
    assert made.version == ref.version + 1
    found = load_file(store.path(made.digest))
    scale = torch.tensor(0.3)
    assert list(found) == sorted(tensors)
    assert found["dense.weight"].dtype == torch.bfloat16
    assert torch.equal(found["dense.weight"], tensors["dense.weight"])
    assert torch.equal(found["classifier.weight"], tensors["classifier.weight"].float() * scale)
    if bias is not None:
        assert torch.equal(found[bias], tensors[bias] * scale + torch.tensor(shift))


def score(loss: float | None, accuracy: float | None) -> Score:
    return Score(loss=loss, accuracy=accuracy, accuracy_error=0.03, rows=9, seconds=0)


@pytest.mark.parametrize(
    ("before", "after", "helps"),
    [
        ((0.9, 0.7), (0.6, 0.7), True),
        ((0.9, 0.7), (0.6, 0.69), False),
        ((0.9, 0.7), (0.6, 0.71), True),
        ((0.6, 0.7), (0.6, 0.8), False),
        ((0.5, 0.7), (0.6, 0.8), False),
        ((None, 0.7), (0.6, 0.8), False),
    ],
)
def test_it_is_kept_where_it_helps(before: tuple[float | None, float], after: tuple[float, float], helps: bool) -> None:
    assert calibration_helps(score(*before), score(*after)) is helps


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("task: {kind: text-classification, labels: 2}", "a head is calibrated on held-out rows: give `evaluate`"),
        ("task: {kind: causal-lm}\nevaluate: {held_out: rows.csv}", "causal-lm has none"),
        ("task: {kind: extractive-qa}\nevaluate: {held_out: rows.csv}", "extractive-qa has none"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(text: str, why: str) -> None:
    with pytest.raises(RunFileInvalid) as found:
        parse_run_file(f"name: a\nmodel: b\n{text}\ncalibrate: true")
    (problem,) = found.value.detail["problems"]
    assert problem["field"] == "calibrate"
    assert why in problem["message"]
