"""The optimizer of one visit: a fresh AdamW, stepped after the backward pass, or inside it where that is exact."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedcybgd.agent.training.errors import NonFinite, OptimizerMissing
from fedcybgd.shared.contract.training import TrainSettings


@dataclass(frozen=True)
class OptimizerGroup:
    """Parameters that are trained with one learning rate."""

    parameters: list[nn.Parameter]
    learning_rate: float


class Stepper:
    """Does what comes after the loss: backward pass, guard against what is not finite, clipping, one step.

    Without clipping each parameter is stepped as soon as its gradient is there, and the gradient is let go: one of them
    exists at a time. AdamW treats parameters one by one, so both ways give the same bits. A clipped norm needs all of them first.
    """

    def __init__(self, groups: Sequence[OptimizerGroup], settings: TrainSettings, device: str) -> None:
        self._groups = groups
        self._max_norm = settings.max_grad_norm
        self._warmup = settings.warmup_steps
        self._where = ""
        self._handles: list[Any] = []
        self._optimizers: list[tuple[float, torch.optim.Optimizer]] = []
        if self._max_norm is None:
            for group in groups:
                for parameter in group.parameters:
                    optimizer = make_optimizer([OptimizerGroup([parameter], group.learning_rate)], settings, device)
                    self._optimizers.append((group.learning_rate, optimizer))
                    self._handles.append(parameter.register_post_accumulate_grad_hook(self._hook(optimizer)))  # type: ignore[no-untyped-call]
        else:
            self._whole = make_optimizer(groups, settings, device)

    def step(self, loss: torch.Tensor | None, step: int, steps: int) -> None:
        """Backward pass and step number `step`, counted from 0. Raises `NonFinite` before a step that would spoil its weights.

        None for a loss whose gradients are there already, which needs clipping.
        """
        # Fresh moments are noisy: the learning rate rises over the first steps of each visit.
        factor = min(1.0, (step + 1) / (self._warmup + 1))
        self._where = f"step {step + 1} of {steps}; lower the learning rate"
        if self._max_norm is None:
            for rate, optimizer in self._optimizers:
                optimizer.param_groups[0]["lr"] = rate * factor
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]
        if self._max_norm is None:
            return
        # The norm is infinite or NaN as soon as one gradient is, so one look at it guards all of them.
        norm = nn.utils.clip_grad_norm_([p for g in self._groups for p in g.parameters], self._max_norm)
        self._check(norm.item())
        for group, wanted in zip(self._whole.param_groups, self._groups, strict=True):
            group["lr"] = wanted.learning_rate * factor
        self._whole.step()
        self._whole.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Take the hooks away; the parameters may live on."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, optimizer: torch.optim.Optimizer) -> Any:
        def step(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            self._check(parameter.grad.norm().item())
            optimizer.step()
            parameter.grad = None

        return step

    def _check(self, norm: float) -> None:
        if not math.isfinite(norm):
            raise NonFinite(f"the gradient's norm is {norm} at {self._where}")


def make_optimizer(groups: Sequence[OptimizerGroup], settings: TrainSettings, device: str) -> torch.optim.Optimizer:
    """AdamW with a fresh state: float32 moments, or blockwise 8-bit ones (Dettmers et al. 2022, arXiv 2110.02861).

    The 8-bit optimizer keeps 32-bit moments for tensors of fewer than 4,096 values. Raises `OptimizerMissing` where it is not installed.
    """
    parameters: list[dict[str, Any]] = [{"params": g.parameters, "lr": g.learning_rate} for g in groups]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=settings.weight_decay, fused=device in ("cpu", "cuda"))
    try:
        library = importlib.import_module("bitsandbytes")
    except ImportError as error:
        text = "the run asks for the 8-bit optimizer, which is not installed here: pip install '.[adam8bit]' in a checkout of this project"
        raise OptimizerMissing(text) from error
    optimizer: torch.optim.Optimizer = library.optim.AdamW8bit(parameters, weight_decay=settings.weight_decay)
    return optimizer
