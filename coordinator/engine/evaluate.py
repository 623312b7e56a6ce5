"""Scores a run's model on held-out rows, in float32."""

import json
import math
import time
from typing import Any

import torch

from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, EvaluateResult, HeldOutRef
from fedcybgd.coordinator.domain.label_tally import LabelTally
from fedcybgd.coordinator.domain.mean_loss import MeanLoss
from fedcybgd.coordinator.engine.shards import as_directory
from fedcybgd.coordinator.engine.streaming import Streamed
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.tables import read_examples
from fedcybgd.shared.models.batches import RowEncoder, chunks, forward_logits, row_losses

TOKENS_A_BATCH = 2048
"""Padded tokens of a batch at the most: bounds the activations and, for language models, the logits."""


class NotFinite(Invalid):
    """The model gives no finite loss on the held-out rows."""

    code = "loss_not_finite"


def held_out_examples(store: EngineStore, held_out: HeldOutRef, spec: TaskSpec) -> list[dict[str, Any]]:
    # The blob goes by its uploaded name, whose suffix tells the format.
    with as_directory(store, [FileRef(name=held_out.name, digest=held_out.digest, size=0)]) as folder:
        return read_examples(folder / held_out.name, spec, held_out.columns, held_out.how, "evaluate.columns")


def evaluate(store: EngineStore, payload: EvaluatePayload) -> EvaluateResult:
    """Mean held-out loss, and accuracy for classification.

    Whatever type the weights are stored in. Memory: one layer, what comes before and after the stack, the activations of one batch.
    Raises `NotFinite`.
    """
    began = time.monotonic()
    examples = held_out_examples(store, payload.held_out, payload)
    with as_directory(store, payload.files) as folder:
        config = json.loads((folder / "config.json").read_text())
        encoder = RowEncoder(folder, payload)
    streamed = Streamed(store, config, payload.task)
    streamed.fill(payload.blocks)
    features = encoder(examples, payload.held_out.name)[: payload.rows]
    features.sort(key=lambda f: len(f.ids))
    measured, tally = MeanLoss(), LabelTally.empty(payload.num_labels or 0)
    with torch.inference_mode():
        for batch_indices in chunks(range(len(features)), max(1, TOKENS_A_BATCH // payload.max_length)):
            batch = encoder.collate([features[i] for i in batch_indices])
            logits = forward_logits(streamed.model, batch)
            losses, predictions = row_losses(logits, batch, payload.task)
            measured.add(losses.tolist(), predictions.tolist())
            if payload.task == "text-classification":
                tally.add(batch.labels.tolist(), logits.argmax(-1).tolist())
    if not math.isfinite(measured.total):
        raise NotFinite(
            f"the loss after {payload.after_rounds} rounds is {measured.total}: the weights have grown too large, or are not finite"
        )
    labelled = payload.task == "text-classification"
    return EvaluateResult(
        rows=min(len(examples), payload.rows or len(examples)),
        loss=measured.mean,
        loss_error=measured.error,
        bits_per_byte=None if labelled else _bits_per_byte(measured.total, encoder.predicted_bytes(features)),
        accuracy=tally.accuracy if labelled else None,
        accuracy_error=tally.accuracy_error if labelled else None,
        majority=tally.majority if labelled else None,
        matthews=tally.matthews if labelled else None,
        macro_f1=tally.macro_f1 if labelled else None,
        labels_held_out=tally.held_out if labelled else None,
        labels_never_right=tally.never_right if labelled else None,
        seconds=time.monotonic() - began,
    )


def _bits_per_byte(nats: float, text_bytes: int) -> float | None:
    return nats / math.log(2) / text_bytes if text_bytes else None
