"""Trains the open blocks of an emulator on the agent's rows: one visit, one loop."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import nn

from agent.training.data import Partition
from agent.training.memory import PeakMemory
from shared.batches import Batch, forward_logits, loss_sum
from shared.protocol import Progress, TrainMetrics, TrainSettings

REPORT_EVERY_S = 0.5


class NonFinite(Exception):
    """The loss or a gradient became NaN or infinite; the step was not taken."""


class Stopped(Exception):
    """The daemon asked to stop."""


@dataclass(frozen=True)
class Group:
    """Parameters that are trained with one learning rate."""

    parameters: list[nn.Parameter]
    learning_rate: float


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
) -> TrainMetrics:
    """Train in place with a fresh AdamW and return what happened.

    Everything that is not in `groups` must be frozen: autograd then keeps nothing of the layers below the lowest trained
    one. Raises `NonFinite` before a step that would spoil the weights, and `Stopped` when `should_stop` says so.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    torch.manual_seed(settings.seed)  # for layers that draw, should a model have any in eval mode
    optimizer = torch.optim.AdamW(
        [{"params": g.parameters, "lr": g.learning_rate} for g in groups],
        weight_decay=settings.weight_decay,
        fused=device in ("cpu", "cuda"),
    )
    parameters = [p for g in groups for p in g.parameters]
    steps = num_steps(settings, len(partition.features))
    batches = endless_batches(partition, settings.batch_size, generator)
    started_at, began, reported = datetime.now(UTC), time.monotonic(), 0.0
    tokens, rows, losses = 0, 0, []

    for step in range(steps):
        if should_stop():
            raise Stopped
        batch = next(batches).to(device)

        with torch.autocast(device, dtype=precision, enabled=precision != torch.float32):
            logits = forward_logits(model, batch)
        total, count = loss_sum(logits, batch, settings.task)
        loss = total / max(count, 1)
        if not math.isfinite(loss.item()):
            raise NonFinite(f"the loss is {loss.item()} at step {step + 1} of {steps}; lower the learning rate, or look at the data")
        loss.backward()  # type: ignore[no-untyped-call]
        # The norm is infinite or NaN as soon as one gradient is, so one look at it guards all of them.
        norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf)
        if not math.isfinite(norm.item()):
            raise NonFinite(f"the gradient's norm is {norm.item()} at step {step + 1} of {steps}; lower the learning rate")

        # Fresh moments are noisy: the learning rate rises over the first steps of each visit.
        factor = min(1.0, (step + 1) / (settings.warmup_steps + 1))
        for group, wanted in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = wanted.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        losses.append(loss.item())
        tokens += batch.num_tokens
        rows += len(batch.input_ids)
        seconds = time.monotonic() - began
        if step + 1 == steps or step == 0 or seconds - reported > REPORT_EVERY_S:
            reported = seconds
            report(Progress(phase="training", step=step + 1, steps=steps, loss=losses[-1], tokens_per_s=tokens / max(seconds, 1e-9),
                            peak_memory_bytes=memory.peak()))  # fmt: skip

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
    return max(1, math.ceil(settings.epochs * math.ceil(num_features / settings.batch_size)))


def endless_batches(partition: Partition, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    while True:
        for indices in partition.order(batch_size, generator):
            yield partition.batch(indices)
