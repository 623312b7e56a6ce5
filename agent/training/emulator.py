"""Assembles the model that an agent trains in from shards alone, and keeps it warm between visits."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from agent.messages import LocalShard
from shared.assembly import Assembled, read_shard, skeleton
from shared.protocol import Task


class Emulator:
    """A model whose blocks are exchanged as their digests change; all of it is frozen until a block is opened."""

    def __init__(self, config_path: Path, task: Task, device: str, precision: torch.dtype, attention: str | None) -> None:
        self._device = device
        self._precision = precision
        model = skeleton(json.loads(config_path.read_text()), task, attention)
        for name, buffer in list(model.named_buffers()):
            path, _, leaf = name.rpartition(".")
            model.get_submodule(path)._buffers[leaf] = buffer.to(device)
        self._assembled = Assembled(model)
        self._held: dict[str, str] = {}
        self._opened: set[str] = set()

    @property
    def model(self) -> nn.Module:
        return self._assembled.model

    def update(self, shards: Iterable[LocalShard], trained: Iterable[str]) -> None:
        """Bring every block to the version of its shard; blocks in `trained` stay float32, whatever the precision."""
        trained = set(trained)
        for shard in shards:
            # A block that was open holds trained values, and one that will be open must be float32: both are read again.
            if self._held.get(shard.block) != shard.digest or shard.block in self._opened | trained:
                tensors = read_shard(Path(shard.path), self._device)
                self._assembled.put(tensors if shard.block in trained else self._frozen(tensors))
                self._held[shard.block] = shard.digest
        self._opened = trained
        self._assembled.check_complete()

    def open(self, path: Path) -> dict[str, nn.Parameter]:
        """Make the parameters of one block trainable, as float32 copies; by canonical name."""
        tensors = {
            name: tensor.to(torch.float32, copy=True)
            for name, tensor in read_shard(path, self._device).items()
            if self._assembled.is_parameter(name)
        }
        self._assembled.put(tensors)
        parameters = {name: self._assembled.parameter(name) for name in tensors}
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return parameters

    def close(self) -> None:
        """Freeze the open blocks again and let go of their gradients; they are read anew at the next visit."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None

    def _frozen(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Frozen matrices in the precision that they are multiplied in: autocast would make the same copy in every step."""
        if self._precision == torch.float32:
            return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        return {name: t.to(self._precision) if self._is_multiplied(name, t) else _at_least_float32(t) for name, t in tensors.items()}

    def _is_multiplied(self, name: str, tensor: torch.Tensor) -> bool:
        return tensor.ndim == 2 and not isinstance(self._assembled.module_of(name), nn.Embedding)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
