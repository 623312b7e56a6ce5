"""Which rows a visit trains on, and in which order: from the seed alone."""

import math
from collections.abc import Iterator

import torch

from fedcybgd.agent.training.data import Partition
from fedcybgd.shared.contract.training import TrainSettings


def num_steps(settings: TrainSettings, num_features: int) -> int:
    """Local steps of a visit over `num_features` rows or windows."""
    if settings.steps is not None:
        return settings.steps
    return max(1, math.ceil((settings.epochs or 1.0) * math.ceil(num_features / settings.batch_size)))


def visit_order(partition: Partition, settings: TrainSettings) -> list[list[int]]:
    """The rows of every step of a visit: epochs one after another, each in an order of its own."""
    generator = torch.Generator().manual_seed(settings.seed)
    batches = _endless(partition, settings.batch_size, generator)
    return [next(batches) for _ in range(num_steps(settings, len(partition.features)))]


def _endless(partition: Partition, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    while True:
        yield from partition.order(batch_size, generator)
