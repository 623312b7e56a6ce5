"""Scores a run's model on held-out rows, in float32."""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedcybgd.coordinator.domain.answer_tally import AnswerCandidate, AnswerTally
from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, EvaluateResult, HeldOutRef
from fedcybgd.coordinator.domain.label_tally import LabelTally
from fedcybgd.coordinator.domain.mean_loss import MeanLoss
from fedcybgd.coordinator.engine import device
from fedcybgd.coordinator.engine.shards import as_directory
from fedcybgd.coordinator.engine.streaming import Streamed
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.tables import Row, examples
from fedcybgd.shared.models.answering import answers
from fedcybgd.shared.models.batches import chunks, forward_logits, row_losses
from fedcybgd.shared.models.question_rows import QuestionEncoder
from fedcybgd.shared.models.row_encoder import RowEncoder, row_encoder

TOKENS_A_BATCH = 2048
"""Padded tokens of a batch at the most, on a processor: bounds the activations and, for language models, the logits."""


MOST_LOGITS = 1 << 23
"""Of so many at the most a calibration holds all at once: 64 MiB in float64"""


class NotFinite(Invalid):
    """The model gives no finite loss on the held-out rows."""

    code = "loss_not_finite"


class Counted(Iterator[Row]):
    """Examples one by one, and how many there were so far."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self.count = 0

    def __next__(self) -> Row:
        row = next(self._rows)
        self.count += 1
        return row

    def all_of_them(self) -> int:
        """How many there are in all."""
        for _ in self:
            pass
        return self.count


@contextlib.contextmanager
def held_out_examples(store: EngineStore, held_out: HeldOutRef, spec: TaskSpec) -> Iterator[Counted]:
    """The examples of a held-out file, while it is open."""
    # The blob goes by its uploaded name, whose suffix tells the format.
    with as_directory(store, [FileRef(name=held_out.name, digest=held_out.digest, size=0)]) as folder:
        yield Counted(examples(folder / held_out.name, spec, held_out.columns, held_out.how, "evaluate.columns"))


def evaluate(store: EngineStore, payload: EvaluatePayload) -> EvaluateResult:
    """Mean held-out loss; of classification also accuracy, of answers in contexts exact match and F1.

    Whatever type the weights are stored in. Memory: one layer, what comes before and after the stack, the activations of one batch.
    Raises `NotFinite`.
    """
    began = time.monotonic()
    with as_directory(store, payload.files) as folder:
        config = json.loads((folder / "config.json").read_text())
        encoder = row_encoder(folder, payload)
    streamed = Streamed(store, config, payload.task)
    streamed.fill(payload.blocks)
    if isinstance(encoder, QuestionEncoder):
        found = _answered(store, payload, streamed, encoder)
    else:
        found = _predicted(store, payload, streamed, encoder)
    if not math.isfinite(found.loss):
        raise NotFinite(
            f"the loss after {counted(payload.after_rounds, 'round')} is {found.loss}: the weights have grown too large, or are not finite"
        )
    return found.model_copy(update={"seconds": time.monotonic() - began})


def _answered(store: EngineStore, payload: EvaluatePayload, streamed: Streamed, encoder: QuestionEncoder) -> EvaluateResult:
    with held_out_examples(store, payload.held_out, payload) as given:
        measured, tally, at_once = MeanLoss(), AnswerTally(), device.tokens_at_once(TOKENS_A_BATCH)
        for said in answers(
            streamed.model, encoder, itertools.islice(given, payload.rows), payload.held_out.name, at_once, device.chosen()
        ):
            measured.add([said.loss], [1])
            right = [answer.text for answer in said.question.answers]
            tally.add(AnswerCandidate(said.text, right, rather_nothing=said.margin < 0))
    return EvaluateResult(
        rows=given.count, loss=measured.mean, loss_error=measured.error, accuracy=None, f1=tally.f1, f1_error=tally.f1_error,
        exact_match=tally.exact_match, exact_match_error=tally.exact_match_error, seconds=0,
    )  # fmt: skip


def _predicted(store: EngineStore, payload: EvaluatePayload, streamed: Streamed, encoder: RowEncoder) -> EvaluateResult:
    with held_out_examples(store, payload.held_out, payload) as given:
        rows = encoder.encoded(given, payload.held_out.name, most=payload.rows)
        held_out_rows = given.all_of_them()
    order = sorted(range(len(rows)), key=rows.length)
    measured, tally = MeanLoss(), LabelTally.empty(payload.num_labels or 0)
    with torch.inference_mode():
        for chosen in chunks(order, max(1, device.tokens_at_once(TOKENS_A_BATCH) // encoder.width)):
            batch = rows.batch(chosen).to(device.chosen())
            logits = forward_logits(streamed.model, batch)
            losses, predictions = row_losses(logits, batch, payload.task)
            measured.add(losses.tolist(), predictions.tolist())
            if payload.is_classification:
                tally.add(batch.labels.tolist(), logits.argmax(-1).tolist())
    count = min(held_out_rows, payload.rows or held_out_rows)
    if payload.is_classification:
        return of_labelled(count, measured, tally)
    return EvaluateResult(
        rows=count, loss=measured.mean, loss_error=measured.error, bits_per_byte=_bits_per_byte(measured.total, rows.predicted_bytes),
        accuracy=None, seconds=0,
    )  # fmt: skip


def of_labelled(rows: int, measured: MeanLoss, tally: LabelTally) -> EvaluateResult:
    """What losses and guesses come to where rows have labels."""
    return EvaluateResult(
        rows=rows, loss=measured.mean, loss_error=measured.error, accuracy=tally.accuracy, accuracy_error=tally.accuracy_error,
        majority=tally.majority, matthews=tally.matthews, macro_f1=tally.macro_f1, labels_held_out=tally.held_out, counted=tally.counted(),
        labels_never_right=tally.never_right, seconds=0,
    )  # fmt: skip


@dataclass(frozen=True)
class HeldOutLogits:
    """What a classifier says of held-out rows, in the order of the file."""

    logits: torch.Tensor
    """float64, (rows, labels), on the processor"""
    labels: torch.Tensor
    """int64, (rows,)"""


def held_out_logits(store: EngineStore, payload: EvaluatePayload) -> HeldOutLogits:
    """Of the rows that the model is scored on; of more than fit into memory every second, or third, and so on. Memory: as for a score, and these logits."""
    with as_directory(store, payload.files) as folder:
        config = json.loads((folder / "config.json").read_text())
        encoder = row_encoder(folder, payload)
    assert not isinstance(encoder, QuestionEncoder)
    streamed = Streamed(store, config, payload.task)
    streamed.fill(payload.blocks)
    with held_out_examples(store, payload.held_out, payload) as given:
        rows = encoder.encoded(given, payload.held_out.name, most=payload.rows)
    order = range(0, len(rows), max(1, -(-len(rows) * (payload.num_labels or 1) // MOST_LOGITS)))
    logits = torch.empty((len(order), payload.num_labels or 1), dtype=torch.float64)
    labels = torch.empty(len(order), dtype=torch.int64)
    with torch.inference_mode():
        for places in chunks(
            sorted(range(len(order)), key=lambda at: rows.length(order[at])), max(1, device.tokens_at_once(TOKENS_A_BATCH) // encoder.width)
        ):
            batch = rows.batch([order[at] for at in places]).to(device.chosen())
            logits[places] = forward_logits(streamed.model, batch).to("cpu", torch.float64)
            labels[places] = batch.labels.to("cpu", torch.int64)
    return HeldOutLogits(logits, labels)


def _bits_per_byte(nats: float, text_bytes: int) -> float | None:
    return nats / math.log(2) / text_bytes if text_bytes else None
