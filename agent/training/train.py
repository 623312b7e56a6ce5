"""Trains the open blocks of an emulator on the agent's rows: one visit, one loop."""

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import torch
from torch import nn

from fedcybgd.agent.training.data import Partition
from fedcybgd.agent.training.errors import NonFinite, Stopped
from fedcybgd.agent.training.loss import Loss
from fedcybgd.agent.training.memory import PeakMemory
from fedcybgd.agent.training.optimizer import Group, Stepper
from fedcybgd.agent.training.prefix import Prefix
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.training import TrainMetrics, TrainSettings

__all__ = ["Group", "NonFinite", "Stopped", "num_steps", "train", "visit_order"]
REPORT_EVERY_S = 0.5


def train(
    model: nn.Module,
    groups: list[Group],
    partition: Partition,
    settings: TrainSettings,
    precision: torch.dtype,
    device: str,
    memory: PeakMemory,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    prefix: Prefix | None = None,
    loss_of: Loss | None = None,
    began: float | None = None,
) -> TrainMetrics:
    """Train in place with a fresh AdamW and return what happened.

    Everything that is not in `groups` must be frozen: autograd then keeps nothing of the layers below the lowest trained
    one. `prefix` stands in for those layers, when it was filled; `began` is when the work of this visit began (time.monotonic).
    Raises `NonFinite` before a step that would spoil the weights, and `Stopped` when `should_stop` says so.
    """
    torch.manual_seed(settings.seed)  # for layers that draw, should a model have any in eval mode
    loss_of = loss_of or Loss(model, settings.task, precision)
    stepper = Stepper(groups, settings, device)
    order = visit_order(partition, settings)
    steps = len(order)
    began, started_at, reported = began or time.monotonic(), datetime.now(UTC), 0.0
    tokens, rows, losses = 0, 0, []

    try:
        for step, indices in enumerate(order):
            if should_stop():
                raise Stopped
            batch = partition.batch(indices).to(device)
            if prefix is not None:
                prefix.use(indices, batch.attention_mask)

            total, count = loss_of(batch)
            loss = total / max(count, 1)
            if not math.isfinite(loss.item()):
                raise NonFinite(f"the loss is {loss.item()} at step {step + 1} of {steps}; lower the learning rate, or look at the data")
            stepper.step(loss, step, steps)

            losses.append(loss.item())
            tokens += batch.num_tokens
            rows += len(batch.input_ids)
            seconds = time.monotonic() - began
            if step + 1 == steps or step == 0 or seconds - reported > REPORT_EVERY_S:
                reported = seconds
                report(Progress(phase="training", step=step + 1, steps=steps, loss=losses[-1], tokens_per_s=tokens / max(seconds, 1e-9),
                                peak_memory_bytes=memory.peak()))  # fmt: skip
    finally:
        stepper.close()

    seconds = time.monotonic() - began
    tenth = max(1, len(losses) // 10)
    return TrainMetrics(
        steps=steps, rows=rows, tokens=tokens, loss_first=sum(losses[:tenth]) / tenth, loss_last=sum(losses[-tenth:]) / tenth,
        seconds=seconds, tokens_per_s=tokens / max(seconds, 1e-9), peak_memory_bytes=memory.peak(), started_at=started_at,
    )  # fmt: skip


def num_steps(settings: TrainSettings, num_features: int) -> int:
    """Local steps of a visit over `num_features` rows or windows."""
    if settings.steps is not None:
        return settings.steps
    return max(1, math.ceil((settings.epochs or 1.0) * math.ceil(num_features / settings.batch_size)))


def visit_order(partition: Partition, settings: TrainSettings) -> list[list[int]]:
    """The rows of every step of a visit, from the seed alone: epochs one after another, each in an order of its own."""
    generator = torch.Generator().manual_seed(settings.seed)
    batches = _endless(partition, settings.batch_size, generator)
    return [next(batches) for _ in range(num_steps(settings, len(partition.features)))]


def _endless(partition: Partition, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    while True:
        yield from partition.order(batch_size, generator)
