"""Fidelity: does the gradient of a block in the emulator point to where it points in the real model?"""

import math
import time
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from coordinator.domain.measurements import FidelityPayload, FidelityResult
from coordinator.engine.calibration import CalibrationRows
from coordinator.engine.streaming import Streamed
from coordinator.errors import Invalid
from coordinator.storage import BlobStore
from shared.batches import forward_logits, loss_sum
from shared.protocol import ShardRef, Task

PIECE = 1 << 20
"""Numbers that are multiplied in float64 at once."""


class NotMeasurable(Invalid):
    """The real model itself has no finite loss, or no gradient, on the calibration rows."""

    code = "not_measurable"


def fidelity(store: BlobStore, payload: FidelityPayload) -> FidelityResult:
    """The cosine between the visited block's gradient in the emulator and in the real model, and the loss of both.

    In float32, on the same rows. The emulator is made of the shards that the agent gets. Raises `NotMeasurable`.
    """
    began = time.monotonic()
    rows = CalibrationRows(store, payload)
    real_loss, real = gradient(store, rows, payload.task, payload.block, payload.blocks)
    loss, bent = gradient(store, rows, payload.task, payload.block, payload.emulator, payload.dropped)
    return FidelityResult(
        plan=payload.plan,
        block=payload.block,
        cosine=cosine(real, bent),
        loss_real=real_loss,
        loss_emulator=loss if math.isfinite(loss) else None,
        rows=len(rows),
        seconds=time.monotonic() - began,
    )


def gradient(
    store: BlobStore, rows: CalibrationRows, task: Task, block: str, shards: Iterable[ShardRef], dropped: Collection[str] = ()
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of a model over `rows` (nats), and the gradient of its summed loss by the parameters of `block`.

    Memory: the block and its gradient, the parts outside the stack, one layer, and the activations of one batch at the borders
    of the layers above the block.
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
    total, count = 0.0, 0
    for batch in rows.batches():
        loss, predictions = loss_sum(forward_logits(streamed.model, batch), batch, task)
        if predictions:
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            count += predictions
    gradients = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in parameters.items()}
    return total / max(count, 1), gradients


def cosine(real: Mapping[str, Tensor], bent: Mapping[str, Tensor]) -> float:
    """Between two gradients of the same block, over all their numbers; 0 where `bent` is zero or not finite.

    Raises `NotMeasurable` where `real` is.
    """
    product = sum(_dot(real[name], bent[name]) for name in real)
    lengths = [math.sqrt(sum(_dot(g, g) for g in one.values())) for one in (real, bent)]
    if not (math.isfinite(lengths[0]) and lengths[0] > 0):
        raise NotMeasurable("the real model has no finite, nonzero gradient on the calibration rows", norm=str(lengths[0]))
    if not (math.isfinite(lengths[1]) and lengths[1] > 0 and math.isfinite(product)):
        return 0.0
    return max(-1.0, min(1.0, product / (lengths[0] * lengths[1])))


def _dot(a: Tensor, b: Tensor) -> float:
    # In pieces: float64 copies of a whole embedding would be the largest thing here.
    pieces = zip(torch.split(a.flatten(), PIECE), torch.split(b.flatten(), PIECE), strict=True)
    return sum(float(torch.dot(x.double(), y.double())) for x, y in pieces)
