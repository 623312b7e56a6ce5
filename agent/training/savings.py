"""What saves memory in a visit, as its options say: chunked logits, a prefix cache, checkpointed layers."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from fedcybgd.agent.messages import TrainingOptions
from fedcybgd.agent.training import prefix, prefix_trial
from fedcybgd.agent.training.checkpoints import activation_bytes, checkpointed, to_checkpoint
from fedcybgd.agent.training.loss import Loss
from fedcybgd.agent.training.visit import Visit

log = logging.getLogger("fedagent.training")


@contextlib.contextmanager
def savings(visit: Visit, options: TrainingOptions, limit: int) -> Iterator[tuple[Loss, prefix.PrefixCache | None]]:
    """Within it the model of `visit` saves what it can; the loss to train with, and the cache that stands in for the layers below.

    `limit` is what training may take, in bytes; 0 for no limit.
    """
    settings, layers, config = visit.settings, visit.emulator.layers, visit.model.config
    first = visit.batch(visit.order[0])
    loss_of = Loss(visit.model, settings.task, visit.compute.precision, options.chunked_logits, first, visit.label_offsets)
    cache = _prefix_cache(visit, loss_of, options.prefix_cache, limit)
    width = max(max(visit.partition.features.length(i) for i in indices) for indices in visit.order)
    each = activation_bytes(config, settings.batch_size * width, width)
    chosen = to_checkpoint(layers[visit.lowest :], options.checkpointing, each, limit)
    with checkpointed(chosen), cache.instead() if cache is not None else contextlib.nullcontext():
        yield loss_of, cache


def _prefix_cache(visit: Visit, loss_of: Loss, setting: str, limit: int) -> prefix.PrefixCache | None:
    """The cache of what enters the lowest trained layer, filled, with the layers under it let go; None where there is none to be had."""
    emulator, below = visit.emulator, visit.lowest
    if below == 0:
        return None
    where = prefix.choose(setting, visit.order, visit.partition, prefix.hidden_size(visit.model.config), limit)
    if where is None:
        return None
    key = (tuple(visit.blocks), below, tuple(visit.request.dropped))
    part = prefix.Prefix(visit.model, emulator.layers, below)
    try:
        if key not in emulator.runs_of_prefix:
            trained = [p for shard in visit.request.shards if shard.block in visit.blocks for p in emulator.parameters(Path(shard.path))]
            rows = sorted({row for batch in visit.order for row in batch})
            emulator.runs_of_prefix[key] = prefix_trial.runs_of_prefix(part, visit.partition, rows, trained, loss_of, visit.compute)
        runs = emulator.runs_of_prefix[key]
        if not runs:
            return None
        cache = prefix.PrefixCache(part, runs, visit.order, where == "disk")
        cache.fill(visit.partition, visit.compute, visit.should_stop)
    except prefix.NotExact as error:
        emulator.runs_of_prefix[key] = 0
        log.warning("no prefix cache for visits of %s in this model: %s", ", ".join(visit.blocks), error)
        return None
    emulator.release(below)
    return cache
