"""The losses for label skew are those of their papers, and an agent unlearns nothing of labels that it has no rows of."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from fedcybgd.agent.training.loss import Loss, label_offsets
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.domain.run_file import RunFileInvalid, parse_run_file
from fedcybgd.shared.contract.words import LabelSkew
from fedcybgd.shared.models.batches import Batch
from tests.support.training import Home, train

COUNTS = [6, 0, 3, 1]
LOGITS = [[0.3, 2.0, -1.0, 0.5], [-0.2, 0.1, 0.7, 1.5], [1.0, -3.0, 0.0, 0.25]]
LABELS = [0, 2, 3]


def by_hand(kind: LabelSkew, logits: Sequence[float], label: int) -> float:
    """As the papers write it, a label at a time, in double precision."""
    n = sum(COUNTS)
    terms = {}
    for c, (logit, count) in enumerate(zip(logits, COUNTS, strict=True)):
        if kind == "none" or (count and kind == "mask"):
            terms[c] = math.exp(logit)
        elif count and kind == "logit_adjustment":  # softmax of f_c + log of the prior of c
            terms[c] = math.exp(logit) * count / n
        elif kind == "smoothed":  # the same with a prior of which a quarter is alike for all labels
            terms[c] = math.exp(logit) * (0.75 * count / n + 0.25 / len(COUNTS))
        elif count and kind == "fedlc":  # the margin of c is one over the fourth root of its rows
            terms[c] = math.exp(logit - 1 / count**0.25)
    return -math.log(terms[label] / sum(terms.values()))


class Table(nn.Module):
    """Logits that stand written, by the first token of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(LOGITS))

    def forward(self, input_ids: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.logits[input_ids[:, 0]])


BATCH = Batch({"input_ids": torch.arange(3)[:, None]}, torch.ones(3, 1, dtype=torch.int64), torch.tensor(LABELS))
KINDS: list[LabelSkew] = ["none", "mask", "logit_adjustment", "smoothed", "fedlc"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_loss_is_that_of_its_paper(kind: LabelSkew, precision: torch.dtype) -> None:
    offsets = label_offsets(kind, COUNTS)
    total, count = Loss(Table(), "text-classification", precision, offsets=offsets)(BATCH)
    expected = sum(by_hand(kind, row, label) for row, label in zip(LOGITS, LABELS, strict=True))
    assert (total.dtype, count) == (torch.float32, 3)
    assert total.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_without_rows_gets_a_gradient_only_where_it_has_a_part_in_the_loss(kind: LabelSkew) -> None:
    model = Table()
    Loss(model, "text-classification", torch.float32, offsets=label_offsets(kind, COUNTS))(BATCH)[0].backward()
    gradient = model.logits.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient[:, 1].any().item() == (kind in ("none", "smoothed"))
    assert gradient[:, 0].all()


@pytest.mark.parametrize("kind", ["logit_adjustment", "smoothed"])
def test_equal_shares_make_logit_adjustment_the_plain_loss(kind: LabelSkew) -> None:
    equal = label_offsets(kind, [5, 5, 5, 5])
    adjusted = Loss(Table(), "text-classification", torch.float32, offsets=equal)(BATCH)[0]
    assert adjusted.item() == pytest.approx(float(Loss(Table(), "text-classification", torch.float32)(BATCH)[0]), rel=1e-6)


@pytest.fixture
def home(tmp_path: Path, bert: Path) -> Home:
    made = Home(tmp_path, bert, "bert")
    rows = [json.loads(line) for line in made.rows.read_text().splitlines()]
    made.rows.write_text("".join(json.dumps(row | {"label": 2 * (row["label"] % 2)}) + "\n" for row in rows))  # none of label 1
    return made


@pytest.mark.parametrize("kind", ["mask", "logit_adjustment", "smoothed", "fedlc"])
def test_a_visit_leaves_the_head_of_a_label_without_rows_as_it_was(home: Home, kind: LabelSkew) -> None:
    weight, bias = "classifier.weight", "classifier.bias"
    plain = train(home.request("head"))[weight]
    delta = train(home.request("head", label_skew=kind, weight_decay=0.1))
    moved = delta[weight]
    assert not delta[bias][1].any()
    assert plain[1].any(), "the plain loss unlearns it"
    assert not moved[1].any()
    assert moved[0].any()
    assert moved[2].any()


def test_counts_of_labels_are_told_only_where_the_owner_lets_them(home: Home) -> None:
    request = home.request("head", label_skew="logit_adjustment", steps=3, batch_size=3)
    telling = request.model_copy(update={"data": request.data.model_copy(update={"tell_labels": True})})
    silent, told = (Visitor("cpu").visit(each, lambda _: None, lambda: False) for each in (request, telling))
    assert silent.label_counts is None
    assert told.label_counts is not None
    assert told.label_counts[1] == 0
    assert min(told.label_counts[0], told.label_counts[2]) > 0
    assert sum(told.label_counts) == told.rows == 8, "two batches of three and one of two: an epoch"


RUN = "name: r\nmodel: m\ntask: {kind: %s}\ntrain: {%s}\n"
OF_LABELS = "text-classification, labels: 3"


@pytest.mark.parametrize(
    ("kind", "said", "meant"),
    [(OF_LABELS, "", "smoothed"), (OF_LABELS, "label_skew: none", "none"), (OF_LABELS, "label_skew: fedlc", "fedlc"),
     ("image-classification, labels: 3", "", "smoothed"), ("causal-lm", "", "none"), ("causal-lm", "label_skew: none", "none")],
)  # fmt: skip
def test_classifiers_allow_for_label_skew_by_default(kind: str, said: str, meant: str) -> None:
    assert parse_run_file(RUN % (kind, said)).label_skew == meant


@pytest.mark.parametrize(("kind", "said"), [("causal-lm", "label_skew: mask"), (OF_LABELS, "label_skew: prior")])
def test_a_word_that_cannot_be_meant_is_refused_by_its_field(kind: str, said: str) -> None:
    with pytest.raises(RunFileInvalid, match=r"train\.label_skew: "):
        parse_run_file(RUN % (kind, said))
