"""Trains the open blocks of an emulator on the agent's rows: one visit, one loop."""

import math
import time
from datetime import UTC, datetime

import torch
from torch import Tensor

from fedcybgd.agent.training.errors import NonFinite, Stopped
from fedcybgd.agent.training.graphs import Graphs
from fedcybgd.agent.training.loss import Loss
from fedcybgd.agent.training.optimizer import OptimizerGroup, Stepper
from fedcybgd.agent.training.prefix import PrefixCache
from fedcybgd.agent.training.visit import Visit
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.models.batches import Batch

REPORT_EVERY_S = 0.5


def train(
    visit: Visit, groups: list[OptimizerGroup], loss_of: Loss, prefix: PrefixCache | None = None, graphs: Graphs | None = None
) -> TrainMetrics:
    """Train in place with a fresh AdamW and return what happened.

    Everything that is not in `groups` must be frozen: autograd then keeps nothing of the layers below the lowest trained
    one. `prefix` stands in for those layers, when it was filled. `graphs` make the passes, where a card repeats them by itself.
    Raises `NonFinite` before a step that would spoil the weights, and `Stopped` when the visit is not wanted any more.
    """
    torch.manual_seed(visit.settings.seed)  # for layers that draw, should a model have any in eval mode
    stepper = Stepper(groups, visit.settings, visit.compute.device)
    told = _Told(visit)
    steps = len(visit.order)
    visit.report(Progress(phase="training", step=0, steps=steps))
    try:
        for step, indices in enumerate(visit.order):
            if visit.should_stop():
                raise Stopped
            batch = visit.partition.batch(indices)
            if graphs is not None:
                loss = graphs.loss(indices, batch)
            else:
                batch = batch.to(visit.compute.device)
                if prefix is not None:
                    prefix.use(indices, batch.mask)
                total, count = loss_of(batch)
                loss = total / max(count, 1)
            if not math.isfinite(loss.item()):
                raise NonFinite(f"the loss is {loss.item()} at step {step + 1} of {steps}; lower the learning rate, or look at the data")
            stepper.step(loss if graphs is None else None, step, steps)
            told.step(loss, batch)
    finally:
        stepper.close()
        if graphs is not None:
            graphs.let_go()
    return told.metrics()


class _Told:
    """What a visit says of itself while it trains, and in the end."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._started_at = datetime.now(UTC)
        self._reported = 0.0
        self._tokens, self._rows = 0, 0
        self._losses: list[float] = []

    def step(self, loss: Tensor, batch: Batch) -> None:
        self._losses.append(loss.item())
        self._tokens += batch.num_tokens
        self._rows += batch.num_rows
        step, steps, seconds = len(self._losses), len(self._visit.order), self._seconds()
        if step in (1, steps) or seconds - self._reported > REPORT_EVERY_S:
            self._reported = seconds
            self._visit.report(Progress(phase="training", step=step, steps=steps, loss=self._losses[-1], tokens_per_s=self._speed(seconds),
                                        peak_memory_bytes=self._visit.memory.peak()))  # fmt: skip

    def metrics(self) -> TrainMetrics:
        losses, seconds = self._losses, self._seconds()
        tenth = max(1, len(losses) // 10)
        return TrainMetrics(
            steps=len(losses), rows=self._rows, tokens=self._tokens, loss_first=sum(losses[:tenth]) / tenth,
            loss_last=sum(losses[-tenth:]) / tenth, seconds=seconds, tokens_per_s=self._speed(seconds),
            peak_memory_bytes=self._visit.memory.peak(), started_at=self._started_at,
        )  # fmt: skip

    def _seconds(self) -> float:
        return time.monotonic() - self._visit.began

    def _speed(self, seconds: float) -> float:
        return self._tokens / max(seconds, 1e-9)
