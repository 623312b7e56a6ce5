"""Fidelity: does the gradient of a block in the emulator point to where it points in the real model?

It is asked batch by batch, for a visit takes its steps along gradients of batches. The gradient summed over all calibration rows is another
thing: near a stationary point of the loss, gradients of batches cancel in it, and what is left is mostly the emulator's error
(`benchmarks/fidelity.py` shows both).
"""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcybgd.coordinator.domain.jobs.measurements import FidelityPayload, FidelityResult
from fedcybgd.coordinator.engine.calibration import CalibrationRows
from fedcybgd.coordinator.engine.streaming import Streamed
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.models.batches import forward_logits, loss_sum

PIECE = 1 << 20
"""Numbers that are multiplied in float64 at once."""


class NotMeasurable(Invalid):
    """The real model itself has no finite loss, or no gradient, on the calibration rows."""

    code = "not_measurable"


@dataclass(frozen=True)
class BatchGradient:
    """Of one batch: the summed loss (nats), the predictions that it was summed over, and its gradient, float32 by canonical name."""

    loss: float
    predictions: int
    gradient: Mapping[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """`cosine`: mean over batches, weighted by predictions; `worst`: of one batch. The losses are means over all predictions, in nats."""

    cosine: float
    worst: float
    loss_real: float
    loss_emulator: float


def fidelity(store: EngineStore, payload: FidelityPayload) -> FidelityResult:
    """Compare the visited block's gradients in the emulator with those in the real model, and the losses.

    In float32, on the same batches of the run's own size. The emulator is made of the shards that the agent gets. Raises `NotMeasurable`.
    """
    began = time.monotonic()
    rows = CalibrationRows(store, payload)
    # The two models take turns, so that the gradients of one batch are all that is held.
    real = gradients(store, rows, payload.task, payload.block, payload.blocks, payload.batch_size)
    bent = gradients(store, rows, payload.task, payload.block, payload.emulator, payload.batch_size, payload.dropped)
    found = compare(real, bent)
    return FidelityResult(
        plan=payload.plan,
        block=payload.block,
        cosine=found.cosine,
        cosine_worst=found.worst,
        loss_real=found.loss_real,
        loss_emulator=found.loss_emulator if math.isfinite(found.loss_emulator) else None,
        rows=len(rows),
        seconds=time.monotonic() - began,
    )


def gradients(
    store: EngineStore,
    rows: CalibrationRows,
    task: Task,
    block: str,
    shards: Iterable[ShardRef],
    batch_size: int,
    dropped: Collection[str] = (),
) -> Iterator[BatchGradient]:
    """The gradient of a model's summed loss by the parameters of `block`, on each batch of `batch_size` rows that has predictions.

    Memory: the block and its gradient, the parts outside the stack, one layer, and the activations of one part of a batch at the
    borders of the layers above the block.
    """
    streamed = Streamed(store, rows.config, task)
    parameters: Mapping[str, torch.nn.Parameter] = {}
    for shard in shards:
        if shard.block == block:
            parameters = streamed.open(shard)
        elif shard.block.startswith("layers."):
            streamed.stream(shard)
        else:
            streamed.put(shard)
    for name in dropped:
        streamed.drop(name)
    streamed.check_complete()
    for step in rows.steps(batch_size):
        total, count = 0.0, 0
        for batch in step:
            loss, predictions = loss_sum(forward_logits(streamed.model, batch), batch, task)
            if predictions:
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
                count += predictions
        if count:
            yield BatchGradient(total, count, {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in parameters.items()})
        for parameter in parameters.values():
            parameter.grad = None


def compare(real: Iterable[BatchGradient], emulator: Iterable[BatchGradient]) -> Comparison:
    """The gradients of the same batches in both models. Raises `NotMeasurable` where the real model has none.

    A batch whose gradient in the real model is zero leads nowhere: only its losses count.
    """
    cosines: list[tuple[float, int]] = []
    losses, predictions = [0.0, 0.0], 0
    for one, other in zip(real, emulator, strict=True):
        losses = [losses[0] + one.loss, losses[1] + other.loss]
        predictions += one.predictions
        if (value := cosine(one.gradient, other.gradient)) is not None:
            cosines.append((value, one.predictions))
    if not cosines:
        raise NotMeasurable("the real model has no gradient on the calibration rows")
    mean = sum(value * weight for value, weight in cosines) / sum(weight for _, weight in cosines)
    return Comparison(mean, min(value for value, _ in cosines), losses[0] / predictions, losses[1] / predictions)


def cosine(real: Mapping[str, Tensor], bent: Mapping[str, Tensor]) -> float | None:
    """Between two gradients of the same block, over all their numbers; 0 where `bent` is zero or not finite, None where `real` is zero.

    Raises `NotMeasurable` where `real` is not finite.
    """
    product = sum(_dot(real[name], bent[name]) for name in real)
    lengths = [norm(one) for one in (real, bent)]
    if not math.isfinite(lengths[0]):
        raise NotMeasurable("the real model has no finite gradient on the calibration rows", norm=str(lengths[0]))
    if lengths[0] == 0:
        return None
    if not (math.isfinite(lengths[1]) and lengths[1] > 0 and math.isfinite(product)):
        return 0.0
    return max(-1.0, min(1.0, product / (lengths[0] * lengths[1])))


def norm(gradient: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(_dot(g, g) for g in gradient.values()))


def _dot(a: Tensor, b: Tensor) -> float:
    # In pieces: float64 copies of a whole embedding would be the largest thing here.
    pieces = zip(torch.split(a.flatten(), PIECE), torch.split(b.flatten(), PIECE), strict=True)
    return sum(float(torch.dot(x.double(), y.double())) for x, y in pieces)
