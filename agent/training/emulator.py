"""Assembles the model that an agent trains in from shards alone, and keeps it warm between visits."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from fedcybgd.agent.messages import LocalShard
from fedcybgd.agent.training.frozen import can_be_quantized, can_train_rows, make_dense, make_quantized, train_rows
from fedcybgd.shared.contract.adapters import factors_of
from fedcybgd.shared.contract.block_names import layers_of
from fedcybgd.shared.contract.codec import DROPPED, PRUNED, kind_of
from fedcybgd.shared.contract.training import Corrections
from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.files.configuration import ModelUnknown, read_configuration
from fedcybgd.shared.files.safetensors_header import read_header
from fedcybgd.shared.models.adapters import Lent, linear_weights
from fedcybgd.shared.models.assembly import Assembled, names_by_canonical, skeleton
from fedcybgd.shared.models.blocks import partition
from fedcybgd.shared.models.families import find_stack
from fedcybgd.shared.models.layers import AssemblyError
from fedcybgd.shared.tensors.codecs import names_in, read_dense_rows, read_encoded, read_stored
from fedcybgd.shared.tensors.quantized import QuantizedTensor

NOT_THERE = ("", DROPPED, 0)


class Emulator:
    """A model whose blocks are exchanged as their digests change; all of it is frozen until a block is opened."""

    def __init__(self, config_path: Path, task: Task, device: str, precision: torch.dtype, attention: str | None) -> None:
        self._device = device
        self._precision = precision
        model = skeleton(read_configuration(config_path), task, attention)
        for name, buffer in list(model.named_buffers()):
            if not buffer.is_meta:  # those come with a shard
                path, _, leaf = name.rpartition(".")
                model.get_submodule(path)._buffers[leaf] = buffer.to(device)
        self._stack = find_stack(model).path
        self._holders = _holders(model)
        self._assembled = Assembled(model)
        self._linear = linear_weights(model)
        self._lent: Lent | None = None
        self._held: dict[str, tuple[str, str, int]] = {}
        self._reshaped: set[str] = set()
        self._opened: set[str] = set()
        self.runs_of_prefix: dict[tuple[tuple[str, ...], int, tuple[str, ...]], int] = {}
        """What trials of the prefix cache found, by opened blocks, lowest layer and dropped blocks; 0 where there can be none."""
        self.without_graphs: set[tuple[str, ...]] = set()
        """Opened blocks whose visits no CUDA graph can be recorded of"""
        self._table = _token_table(model, self._holders)
        settings: Any = model.config
        self._vocabulary = min((n for name, n in settings.to_dict().items() if name.startswith("vocab_size") and n), default=0)
        self.rows: dict[str, torch.Tensor] = {}
        """of the tables that are open in some rows alone: which"""

    @property
    def model(self) -> nn.Module:
        return self._assembled.model

    @property
    def layers(self) -> list[nn.Module]:
        """The stack of layers, as it is now (dropped ones pass their input through)."""
        stack = self.model.get_submodule(self._stack)
        assert isinstance(stack, nn.ModuleList)
        return list(stack)

    def update(self, shards: Iterable[LocalShard], trained: Iterable[str], dropped: Iterable[str] = ()) -> None:
        """Bring every block to the version and codec of its shard; blocks in `trained` stay float32, whatever the precision.

        The layers of the blocks in `dropped`, which have no shard, are left out.
        """
        trained = set(trained)
        for block in dropped:
            if self._held.get(block) != NOT_THERE:
                self._restore(block)
                self._release(layers_of(block))
                self._assembled.drop(list(layers_of(block)))
                self._reshaped.add(block)
                self._held[block] = NOT_THERE
        for shard in shards:
            # A block that was open holds trained values, and one that will be open must be float32: both are read again.
            # What is held may be mapped from a file that was found damaged and made again: that is another file.
            version = (shard.digest, shard.codec, Path(shard.path).stat().st_ino)
            if self._held.get(shard.block) != version or shard.block in self._opened | trained:
                self._read(shard, shard.block in trained)
                self._held[shard.block] = version
        self._opened = trained
        self._assembled.check_complete()

    def open(self, path: Path, tokens: Collection[int] | None = None) -> dict[str, nn.Parameter]:
        """Make the parameters of one block trainable, as float32 copies; by canonical name.

        `tokens` are the ids that the visit meets. A table that is there to look tokens up in, and for nothing else, is trained in
        their rows alone: the parameter is the matrix of these rows, and `rows` says which they are.
        """
        tensors, few, header = {}, {}, read_header(path)
        with safe_open(path, framework="pt", device=self._device) as file:
            for name in sorted(names_in(header)):
                if name == self._table and tokens is not None:
                    self.rows[name] = self._ids(tokens, self._assembled.parameter(name).shape[0])
                    few[name] = nn.Parameter(read_dense_rows(path, name, self.rows[name]).to(self._device))
                elif self._assembled.is_parameter(name):
                    stored, held = read_stored(file, name, header), self._assembled.parameter(name)
                    # What was stored in fewer bits is a copy in float32 since `update`, and nobody else's.
                    if header.tensors[name].dtype != "F32" and held.dtype == torch.float32 and not held.is_meta:
                        tensors[name] = held.detach()
                    else:
                        tensors[name] = stored.dequantize() if isinstance(stored, QuantizedTensor) else stored.to(torch.float32, copy=True)
        if self._table in {*tensors, *few}:  # it stays quantized until now
            make_dense(self._assembled.module_of(self._table))
        self._assembled.put(tensors)
        parameters = {name: self._assembled.parameter(name) for name in tensors}
        for name, parameter in few.items():
            [(holder, leaf)] = self._holders[name]
            module = self.model.get_submodule(holder)
            module._parameters[leaf] = _placeholder(self._assembled.parameter(name).shape)
            train_rows(module, self.rows[name].to(self._device), parameter)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return parameters | few

    def correct(self, corrections: Corrections, seed: int) -> dict[str, nn.Parameter]:
        """Give frozen matrices factors that can be trained, by canonical name; they go when the emulator is closed.

        Raises `ModelUnknown` for matrices that are not there, or that no such factors can be beside.
        """
        shapes = {weight: self._linear.get(weight, ()) for weight in corrections.matrices}
        changed = {layer for block in self._reshaped for layer in layers_of(block)}
        for weight, shape in shapes.items():
            if not shape or corrections.rank > min(shape) or self.layer_of(weight) in changed:
                raise ModelUnknown(f"no correction of rank {corrections.rank} can be beside {weight[:100]!r}, as this visit has the model")
            if any(
                parameter.requires_grad for parameter in self._assembled.module_of(weight)._parameters.values() if parameter is not None
            ):
                raise ModelUnknown(f"{weight} is trained, and cannot be corrected as well")
        self._lent = Lent(self.model, shapes, corrections.rank, corrections.scale, seed, self._device)
        return self._lent.parameters

    def layer_of(self, weight: str) -> int | None:
        """The layer that a parameter belongs to."""
        return self._assembled.layer_of(weight)

    def _ids(self, tokens: Collection[int], size: int) -> torch.Tensor:
        # Some models pad once more, to a length of their own.
        padding = getattr(self.model.config, "pad_token_id", None)
        found = {*tokens, *([padding] if isinstance(padding, int) else [])}
        return torch.tensor(sorted(token for token in found if 0 <= token < size))

    def parameters(self, path: Path) -> list[nn.Parameter]:
        """The parameters of the block whose shard is at `path`, as they are in the model."""
        names = sorted(names_in(read_header(path)))
        return [self._assembled.parameter(name) for name in names if self._assembled.is_parameter(name)]

    def layers_in(self, path: Path) -> set[int]:
        """The layers that something of the block whose shard is at `path` belongs to."""
        return {layer for name in names_in(read_header(path)) if (layer := self._assembled.layer_of(name)) is not None}

    def close(self) -> None:
        """Freeze the open blocks again and let go of their gradients; they are read anew at the next visit. Corrections are taken away."""
        if self._lent is not None:
            self._lent.take_away()
            self._lent = None
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for name in self.rows:
            for holder, _ in self._holders[name]:
                make_dense(self.model.get_submodule(holder))
        self.rows = {}

    def release(self, below: int) -> None:
        """Let go of the tensors of all blocks whose layers lie below layer `below`; they are read again at the next visit."""
        for block in [b for b in self._held if layers_of(b) and max(layers_of(b)) < below and self._held[b] != NOT_THERE]:
            self._release(layers_of(block))
            del self._held[block]

    def _release(self, layers: Iterable[int]) -> None:
        gone = set(layers)
        if gone and max(gone) >= len(self.layers):
            raise AssemblyError(f"there is no layer {max(gone)} to leave out: the model has {len(self.layers)}")
        # Some models run a part of one layer in others, too.
        needed = {id(module) for index, layer in enumerate(self.layers) if index not in gone for module in layer.modules()}
        for layer in gone:
            for module in self.layers[layer].modules():
                if id(module) in needed:
                    continue
                make_dense(module)
                for leaf, old in module._parameters.items():
                    if old is not None:
                        module._parameters[leaf] = _placeholder(old.shape, old.dtype)

    def _restore(self, block: str) -> None:
        """The layers of a block that was pruned or dropped get their own modules again."""
        if block in self._reshaped:
            for layer in layers_of(block):
                self._assembled.restore(layer)
            self._reshaped.discard(block)

    def _read(self, shard: LocalShard, trained: bool) -> None:
        self._restore(shard.block)
        pruned = kind_of(shard.codec) == PRUNED
        dense: dict[str, torch.Tensor] = {}
        kept: dict[str, QuantizedTensor] = {}
        for name, tensor in read_encoded(Path(shard.path), shard.codec, self._device).items():
            if not isinstance(tensor, QuantizedTensor):
                dense[name] = tensor
            elif (not trained or name == self._table) and self._can_stay_quantized(name):
                kept[name] = tensor
            else:
                dense[name] = tensor.dequantize()
        dense = self._to_train(dense) if trained else self._frozen(dense)
        if pruned:
            self._assembled.put_pruned(dense)
            self._reshaped.add(shard.block)
            return
        for name in [*dense, *kept]:
            for path, leaf in self._holders.get(name, ()):
                if leaf == "weight":  # an adapter beside it comes with another shard
                    make_dense(self.model.get_submodule(path))
        # Placeholders count as the block's tensors, and tied modules get the same one.
        self._assembled.put(dense | {name: _placeholder(tensor.shape).data for name, tensor in kept.items()})
        for name, tensor in kept.items():
            for path, _ in self._holders[name]:
                make_quantized(self.model.get_submodule(path), tensor)

    def _can_stay_quantized(self, name: str) -> bool:
        holders = [(self.model.get_submodule(path), leaf) for path, leaf in self._holders.get(name, [])]
        # A table that is not of tokens is small, and may be read by others than itself: those of relative positions are.
        return bool(holders) and all(
            can_be_quantized(module, leaf) and not (isinstance(module, nn.Embedding) and module.num_embeddings < self._vocabulary)
            for module, leaf in holders
        )

    def _frozen(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Frozen matrices in the precision that they are multiplied in: autocast would make the same copy in every step."""
        if self._precision == torch.float32:
            return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        return {name: t.to(self._precision) if self._is_multiplied(name, t) else _at_least_float32(t) for name, t in tensors.items()}

    def _to_train(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What will be opened, in float32 already: savings are tried out before. A table that is large, and opened in few rows, stays as it is."""
        kept = {self._table} if self._precision != torch.float32 else set()
        return {name: t if name in kept else _at_least_float32(t) for name, t in tensors.items()}

    def _is_multiplied(self, name: str, tensor: torch.Tensor) -> bool:
        return tensor.ndim == 2 and not isinstance(self._assembled.module_of(name), nn.Embedding)


def homes(config_path: Path, task: Task) -> dict[str, str]:
    """Tensor → the block that the model itself puts it into, by canonical names; of an adapter, that of the matrix which it changes."""
    blocks = partition(skeleton(read_configuration(config_path), task))
    home = {tensor.name: block.name for block in blocks for tensor in block.tensors}
    return home | {factor: block for name, block in home.items() for factor in factors_of(name) if factor in home}


def _holders(model: nn.Module) -> dict[str, list[tuple[str, str]]]:
    """By canonical name: the modules (path, name in the module) that hold a parameter. Tied ones have several."""
    places: dict[int, list[tuple[str, str]]] = {}
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((path, leaf))
    result = {}
    for name, full in names_by_canonical(model).items():
        path, _, leaf = full.rpartition(".")
        parameter = model.get_submodule(path)._parameters.get(leaf)
        if parameter is not None:
            result[name] = places[id(parameter)]
    return result


def _token_table(model: nn.Module, holders: Mapping[str, list[tuple[str, str]]]) -> str | None:
    """The canonical name of the weight that tokens are looked up in, if it is for nothing else; one tied to an output matrix is."""
    try:
        module = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    except NotImplementedError:
        return None
    if not isinstance(module, nn.Embedding) or not can_train_rows(module):
        return None
    found = (name for name, places in holders.items() if len(places) == 1 and model.get_submodule(places[0][0]) is module)
    return next(found, None)


def _placeholder(shape: Iterable[int], dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.empty(tuple(shape), device="meta", dtype=dtype), requires_grad=False)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
