"""Numbers of scores against their definitions: counted one by one, drawn again and again, or known from a table."""

import math
import random
import statistics

import pytest
import torch
from torch.nn import functional

from fedcybgd.coordinator.domain.label_tally import LabelTally, label_scores, worst_first
from fedcybgd.coordinator.domain.mean_loss import MeanLoss
from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.models.batches import IGNORED, Batch, loss_sum, row_losses


def tally(labels: list[int], guesses: list[int], of: int) -> LabelTally:
    found = LabelTally.empty(of)
    found.add(labels, guesses)
    return found


def pearson_of_two(labels: list[int], guesses: list[int]) -> float:
    return statistics.correlation([float(label) for label in labels], [float(guess) for guess in guesses])


@pytest.mark.parametrize("seed", range(5))
def test_matthews_of_two_labels_is_their_correlation(seed: int) -> None:
    draw = random.Random(seed)
    labels = [draw.randrange(2) for _ in range(200)]
    guesses = [label if draw.random() < 0.7 else 1 - label for label in labels]
    assert tally(labels, guesses, 2).matthews == pytest.approx(pearson_of_two(labels, guesses))


def test_matthews_of_three_labels_is_the_covariance_of_indicators() -> None:
    draw = random.Random(1)
    labels = [draw.randrange(3) for _ in range(300)]
    guesses = [label if draw.random() < 0.6 else draw.randrange(3) for label in labels]

    def covariance(a: list[int], b: list[int]) -> float:
        return sum(statistics.covariance([float(x == k) for x in a], [float(y == k) for y in b]) for k in range(3))

    expected = covariance(labels, guesses) / math.sqrt(covariance(labels, labels) * covariance(guesses, guesses))
    assert tally(labels, guesses, 3).matthews == pytest.approx(expected)


@pytest.mark.parametrize(("labels", "guesses"), [([0, 1, 1], [1, 1, 1]), ([1, 1, 1], [0, 1, 1]), ([], [])])
def test_matthews_is_zero_where_nothing_varies(labels: list[int], guesses: list[int]) -> None:
    assert tally(labels, guesses, 2).matthews == 0


def test_the_majority_is_the_commonest_label_of_the_rows_and_not_of_the_guesses() -> None:
    found = tally([0, 0, 0, 1, 2], [1, 1, 1, 1, 1], 3)
    assert (found.majority, found.accuracy) == (0.6, 0.2)
    assert found.accuracy_error == pytest.approx(math.sqrt(0.2 * 0.8 / 5))


def test_labels_one_by_one_come_to_the_whole() -> None:
    draw = random.Random(2)
    labels = [draw.choice([0, 1, 1, 3]) for _ in range(60)]
    guesses = [label if draw.random() < 0.5 else draw.randrange(5) for label in labels]
    found = tally(labels, guesses, 100_000)
    by_label = {one.label: one for one in label_scores(found.counted(), ["a", "b"])}
    assert set(by_label) == {*labels, *guesses}, "of a hundred thousand those that some row has to do with"
    assert statistics.mean(one.f1 for one in by_label.values() if one.f1 is not None) == pytest.approx(found.macro_f1)
    for label, one in by_label.items():
        assert one.recall == (found.right[label] / labels.count(label) if label in labels else None)
        assert one.precision == (found.right[label] / guesses.count(label) if label in guesses else None)
    assert (by_label[1].name, by_label[3].name) == ("b", None)
    shares = [one.recall for one in worst_first(list(by_label.values()))]
    assert shares == [*sorted(share for share in shares if share is not None), *[None] * shares.count(None)]


def test_the_error_of_a_mean_over_rows_of_one_prediction_is_the_textbooks() -> None:
    losses = [0.1, 0.5, 2.0, 0.3, 1.1]
    measured = MeanLoss()
    measured.add(losses, [1] * 5)
    assert measured.mean == pytest.approx(statistics.mean(losses))
    assert measured.error == pytest.approx(statistics.stdev(losses) / math.sqrt(5))


def test_the_error_of_a_mean_over_windows_is_how_much_it_differs_from_draw_to_draw() -> None:
    """Long and short rows, and tokens of a row that are alike: a spread over tokens would say a fifth of it."""
    draw = random.Random(3)

    def rows(number: int) -> MeanLoss:
        measured = MeanLoss()
        for _ in range(number):
            count, level = draw.choice([5, 40]), draw.gauss(2.0, 0.5)
            measured.add([sum(level + draw.gauss(0, 0.2) for _ in range(count))], [count])
        return measured

    means = [rows(80).mean for _ in range(400)]
    said = [error for _ in range(50) if (error := rows(80).error) is not None]
    assert statistics.mean(said) == pytest.approx(statistics.stdev(means), rel=0.12)


def test_of_one_row_no_error_is_said() -> None:
    measured = MeanLoss()
    measured.add([1.5], [3])
    assert (measured.mean, measured.error) == (0.5, None)


@pytest.mark.parametrize("task", ["causal-lm", "text-classification"])
def test_losses_of_rows_sum_to_the_loss_that_agents_train_by(task: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (4, 6))
    labels = ids.clone()
    labels[0, 3:] = IGNORED
    labels[1, :2] = IGNORED
    batch = Batch({"input_ids": ids}, torch.ones_like(ids), labels if task == "causal-lm" else torch.tensor([0, 2, 1, 2]))
    logits = torch.randn((4, 6, 11) if task == "causal-lm" else (4, 3))
    losses, counts = row_losses(logits, batch, task)  # type: ignore[arg-type]
    total, count = loss_sum(logits, batch, task)  # type: ignore[arg-type]
    assert losses.shape == counts.shape == (4,)
    assert float(losses.sum()) == pytest.approx(float(total), rel=1e-6)
    assert int(counts.sum()) == count
    if task == "causal-lm":
        alone = functional.cross_entropy(logits[1, 1:-1], ids[1, 2:], reduction="sum")
        assert float(losses[1]) == pytest.approx(float(alone), rel=1e-6)


@pytest.mark.parametrize(
    ("accuracy", "majority", "doubtful"),
    [(0.72, 0.70, True), (0.70, 0.72, True), (0.74, 0.70, False), (None, None, False), (0.4, None, False)],
)
def test_a_score_is_compared_with_the_majority_by_its_error(accuracy: float | None, majority: float | None, doubtful: bool) -> None:
    found = Score(loss=1.0, accuracy=accuracy, accuracy_error=0.03, majority=majority, rows=150, seconds=1.0)
    assert found.is_by_majority == doubtful
