"""Scores a run's model on held-out rows, in float32."""

import json
import time
from typing import Any

import torch

from coordinator.domain.job import EvaluatePayload, EvaluateResult, HeldOutRef
from coordinator.engine.shards import as_directory
from coordinator.storage import BlobStore
from shared.assembly import Assembled, read_shard, skeleton
from shared.batches import Encoder, chunks, forward_logits, loss_sum
from shared.protocol import FileRef, Task
from shared.tables import read_examples

TOKENS_A_BATCH = 2048
"""Padded tokens of a batch at the most: bounds the activations and, for language models, the logits."""


def held_out_examples(
    store: BlobStore, held_out: HeldOutRef, task: Task, num_labels: int | None, label_names: list[str] | None
) -> list[dict[str, Any]]:
    # The blob goes by its uploaded name, whose suffix tells the format.
    with as_directory(store, [FileRef(name=held_out.name, digest=held_out.digest, size=0)]) as folder:
        return read_examples(folder / held_out.name, task, held_out.columns, num_labels, label_names)


def evaluate(store: BlobStore, payload: EvaluatePayload) -> EvaluateResult:
    """Mean held-out loss, and accuracy for classification.

    Weights are mapped from the shards, not read into memory: what the process holds of its own are activations.
    """
    began = time.monotonic()
    examples = held_out_examples(store, payload.held_out, payload.task, payload.num_labels, payload.label_names)
    with as_directory(store, payload.files) as folder:
        config = json.loads((folder / "config.json").read_text())
        encoder = Encoder(folder, payload.task, payload.max_length)
    assembled = Assembled(skeleton(config, payload.task))
    for block in payload.blocks:
        assembled.put(read_shard(store.path(block.digest)))
    assembled.check_complete()
    features = encoder(examples)[: payload.rows]
    features.sort(key=lambda f: len(f.ids))
    total, count, right = 0.0, 0, 0
    with torch.inference_mode():
        for batch_indices in chunks(range(len(features)), max(1, TOKENS_A_BATCH // payload.max_length)):
            batch = encoder.collate([features[i] for i in batch_indices])
            logits = forward_logits(assembled.model, batch)
            loss, predictions = loss_sum(logits, batch, payload.task)
            total += float(loss)
            count += predictions
            if payload.task == "text-classification":
                right += int((logits.argmax(-1) == batch.labels).sum())
    accuracy = right / count if payload.task == "text-classification" else None
    return EvaluateResult(
        rows=min(len(examples), payload.rows or len(examples)),
        loss=total / max(count, 1),
        accuracy=accuracy,
        seconds=time.monotonic() - began,
    )
