"""Makes the sketch of a delta while it is read: every number goes, with a sign by its place, into one of 256 sums."""

import hashlib

import torch

from fedcybgd.coordinator.domain import sketch

PERIOD = 4096
"""A sign is the product of two: one for the place within a stretch of so many numbers, and one for the stretch. So no list of all is held."""


class Sketcher:
    """Of one block: sketches of deltas that are multiples of each other are the same but for their sign."""

    def __init__(self) -> None:
        self._sums = torch.zeros(sketch.WIDTH, dtype=torch.float64)

    def add(self, name: str, numel: int, start: int, values: torch.Tensor) -> None:
        """Numbers of a tensor of `numel`, from number `start` on."""
        drawn = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little"))
        within = torch.randint(0, 2, (PERIOD,), generator=drawn).float() * 2 - 1
        stretches = torch.randint(0, 2, (numel // PERIOD + 1,), generator=drawn).float() * 2 - 1
        first, offset = divmod(start, PERIOD)
        flat = torch.nn.functional.pad(values.flatten().float(), (offset, -(offset + values.numel()) % PERIOD)).view(-1, PERIOD)
        folded = (stretches[first : first + len(flat)] @ flat) * within
        self._sums += folded.view(-1, sketch.WIDTH).sum(0, dtype=torch.float64)

    def packed(self) -> str:
        return sketch.packed(self._sums.tolist())
