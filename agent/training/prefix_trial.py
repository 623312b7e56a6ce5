"""Tries a prefix cache out on two short rows: it is used only where it changes nothing.

What can be in its way is found out, not listed: layers that run in turns with those above them or lay out hidden states in
their own way, a table that is trained and that layers below use, too, later layers that read what earlier ones left.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedcybgd.agent.training.compute import Compute
from fedcybgd.agent.training.data import Partition
from fedcybgd.agent.training.loss import Loss
from fedcybgd.agent.training.prefix import NotExact, Prefix, PrefixCache
from fedcybgd.shared.models.batches import Batch

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Distance of two gradients, relative to their norm, that rounding explains: padding is zeros in the cache."""
NEGLIGIBLE = 1e-5
"""Norm of a gradient, relative to that of all, below which it is rounding itself."""
Gradients = list[Tensor | None]


def runs_of_prefix(
    prefix: Prefix, partition: Partition, rows: Sequence[int], trained: Sequence[nn.Parameter], loss_of: Loss, compute: Compute
) -> int:
    """How often the last layer of the prefix runs in a forward pass.

    `rows` are those of the visit, `trained` the parameters that it trains, as they are in the model. Raises `NotExact` where a visit would learn
    something else with the cache than without.
    """
    chosen = _rows({row: partition.features.length(row) for row in rows})
    batch = partition.batch(chosen).to(compute.device)
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        order, output, plain = _watched(prefix, trained, loss_of, batch)
        runs = order.count(prefix.below - 1)
        _check_order(order, prefix.below)
        cache = PrefixCache(prefix, runs, [chosen], on_disk=False)
        if cache.hidden(output, batch).requires_grad:
            raise NotExact("something that is trained is used in the layers below, too")
        cache.fill(partition, compute, lambda: False)
        with cache.instead():
            cache.use(chosen, batch.mask)
            cached = _gradients(trained, loss_of, batch)
    except NotExact:
        raise
    except Exception as error:  # whatever a model may raise whose layers do not get what they are used to
        raise NotExact(f"{type(error).__name__}: {error}") from error
    finally:
        for parameter in trained:
            parameter.requires_grad_(False)
    _compare(plain, cached, TOLERANCE.get(compute.precision, TOLERANCE[torch.bfloat16]))
    return runs


def _rows(lengths: Mapping[int, int]) -> list[int]:
    """Two short rows of different length, so that one is padded; never as many as they are long, so that layouts show."""
    first, *others = sorted(lengths, key=lambda row: lengths[row])
    second = next((row for row in others if lengths[row] > lengths[first]), None)
    if second is None:
        return [first]
    return [first, second] if lengths[second] != 2 else [second]


def _watched(prefix: Prefix, trained: Sequence[nn.Parameter], loss_of: Loss, batch: Batch) -> tuple[list[int], Any, Gradients]:
    """The layers in the order in which they ran, what the last one of the prefix returned last, and the gradients."""
    order: list[int] = []
    outputs: list[Any] = [None]
    hooks = [layer.register_forward_pre_hook(lambda *_, index=index: order.append(index)) for index, layer in enumerate(prefix.layers)]
    hooks.append(prefix.layers[prefix.below - 1].register_forward_hook(lambda _module, _inputs, output: outputs.append(output)))
    try:
        gradients = _gradients(trained, loss_of, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return order, outputs[-1], gradients


def _check_order(order: Sequence[int], below: int) -> None:
    ran_below = [place for place, index in enumerate(order) if index < below]
    if not ran_below or order[ran_below[-1]] != below - 1:
        raise NotExact(f"layer {below - 1} is not the last to run of those below")
    if ran_below[-1] >= len(ran_below):
        raise NotExact("layers below run again after those above")


def _gradients(trained: Sequence[nn.Parameter], loss_of: Loss, batch: Batch) -> Gradients:
    total, _ = loss_of(batch)
    if not total.requires_grad:
        return [None] * len(trained)
    return list(torch.autograd.grad(total, list(trained), allow_unused=True))


def _compare(plain: Gradients, cached: Gradients, tolerance: float) -> None:
    whole = max((float(gradient.norm()) for gradient in plain if gradient is not None), default=0.0)
    for one, other in zip(plain, cached, strict=True):
        if one is None or other is None:
            if one is not other:
                raise NotExact("something that is trained would get no gradient")
            continue
        norm = float(one.norm())
        if norm > NEGLIGIBLE * whole and not float((one - other).norm()) <= tolerance * norm:
            raise NotExact("gradients would be others")
