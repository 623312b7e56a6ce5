"""The step of the outer optimizer on some rows of a tensor, and the files of what it carries on."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.coordinator.domain.outer import Outer
from fedcybgd.coordinator.storage import BlobWriter, EngineStore
from fedcybgd.shared.files.safetensors_header import pack_header, read_header
from fedcybgd.shared.tensors.delta_file import some_rows


def stepped(outer: Outer, base: Tensor, mean: Tensor, velocity: Tensor | None) -> tuple[Tensor, Tensor]:
    """The new values and the new velocity: each product and each sum is rounded once, in float32, and none are fused."""
    new = mean if velocity is None else velocity.mul(outer.momentum).add_(mean)
    step = new.mul(outer.momentum).add_(mean) if outer.nesterov else new
    return step.mul(outer.learning_rate).add_(base), new


class OldVelocity:
    """The file of a velocity, or none: then it is zero."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._names = frozenset(read_header(path).tensors) if path is not None else frozenset()

    def some(self, name: str, rows: slice | None) -> Tensor | None:
        """Some rows of a tensor of it; None: it is zero."""
        if self._path is None or name not in self._names:
            return None
        with safe_open(self._path, framework="pt") as file:
            return some_rows(file, name, rows)


@contextlib.contextmanager
def old_velocity(store: EngineStore, first: Change | None = None) -> Iterator[OldVelocity]:
    """What a change goes on from."""
    if first is None or first.velocity is None:
        yield OldVelocity(None)
        return
    with store.localised(first.velocity) as path:
        yield OldVelocity(path)


@contextlib.contextmanager
def new_velocity(
    store: EngineStore, outer: Outer | None, shapes: Sequence[tuple[str, str, tuple[int, ...]]]
) -> Iterator[BlobWriter | None]:
    """Where what a change carries on is written, tensor by tensor in the order of its block; None: it has no outer optimizer."""
    if outer is None:
        yield None
        return
    with store.writer() as writer:
        writer.write(pack_header(shapes))
        yield writer
