"""Partitions a model into blocks: disjoint groups of tensors that together are all of it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedcybgd.shared.contract.adapters import is_factor
from fedcybgd.shared.contract.block_names import block_name
from fedcybgd.shared.contract.errors import PartitionError
from fedcybgd.shared.models.families import NOT_TRAINED, base_prefix, canonical, find_stack, is_norm
from fedcybgd.shared.models.forward_pass import ForwardPass, follow

Kind = Literal["embeddings", "layer", "norm", "pooler", "head", "adapters"]
FRESHLY_MADE: tuple[Kind, ...] = ("pooler", "head", "adapters")
"""Blocks that a checkpoint may lack: they come after what every task shares, or beside it, and can be made afresh for a run."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a block by its canonical name (as the base model calls it)."""

    name: str
    shape: tuple[int, ...]
    is_parameter: bool

    @property
    def numel(self) -> int:
        result = 1
        for n in self.shape:
            result *= n
        return result


@dataclass(frozen=True)
class BlockSpec:
    name: str
    kind: Kind
    tensors: tuple[TensorSpec, ...]
    is_used: bool = True
    """False: nothing that the model returns depends on it, as some classifiers keep the pooler of their base model; no visit could train it"""

    @property
    def num_parameters(self) -> int:
        return sum(t.numel for t in self.tensors if t.is_parameter)


def own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by their name in `model`, in registration order, tied ones once.

    Of a tied tensor's names the base model's own comes before a head's, wherever the head was registered.
    """
    # Parameters are the same objects in state_dict(keep_vars=True), so ties are found by identity.
    tensors = model.state_dict(keep_vars=True)
    prefix = base_prefix(model)
    chosen: dict[int, str] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in chosen or (_in_base(name, prefix) and not _in_base(chosen[id(tensor)], prefix)):
            chosen[id(tensor)] = name
    return {name: tensor for name, tensor in tensors.items() if chosen[id(tensor)] == name}


def names_by_canonical(model: nn.Module) -> dict[str, str]:
    """The name in `model` of each of its own tensors, by canonical name."""
    prefix = base_prefix(model)
    return {canonical(name, prefix): name for name in own_tensors(model)}


def partition(model: nn.Module, layers_per_block: int = 1) -> list[BlockSpec]:
    """The blocks of `model` in the order of its forward pass: embeddings, layers, final norm, pooler, head; then its adapters.

    `layers_per_block` consecutive layers make one block. What is used before the last layer has run, and is no part of a layer,
    belongs to the embeddings; so do tables that layers share. The model may be on the meta device. Tied tensors belong to
    the block that uses them first. Raises `PartitionError` for a model that cannot be split so.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if isinstance(model_type, str) and model_type in NOT_TRAINED:
        raise PartitionError(f"a {model_type} cannot be trained here: {NOT_TRAINED[model_type]}")
    stack = find_stack(model)
    if found := next((name for name, module in model.named_modules() if isinstance(module, _BatchNorm)), None):
        raise PartitionError(
            f"{type(model).__name__} has batch normalisation ({found}): its averages change with every pass, whoever trains"
        )
    _check_own_layers(model, stack.path)
    prefix = base_prefix(model)
    tensors = own_tensors(model)
    course = follow(model, stack, tensors)
    groups: dict[tuple[Kind, int], list[TensorSpec]] = {}
    used: set[tuple[Kind, int]] = set()
    past_stack = False
    for name, tensor in tensors.items():
        spec = TensorSpec(canonical(name, prefix), tuple(tensor.shape), isinstance(tensor, nn.Parameter))
        index = layer_index(name, stack.path)
        if index is not None:
            past_stack = True
            key: tuple[Kind, int] = ("adapters", 0) if is_factor(name) else ("layer", index // layers_per_block)
        else:
            key = (_kind(model, name, course, past_stack), 0)
        groups.setdefault(key, []).append(spec)
        if name in course.reached or key[0] in ("layer", "adapters"):
            used.add(key)
    order: list[Kind] = ["embeddings", "layer", "norm", "pooler", "head", "adapters"]
    blocks = [
        BlockSpec(block_name(kind, index, layers_per_block, stack.length), kind, tuple(tensors), (kind, index) in used)
        for (kind, index), tensors in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]
    _check(blocks, model, prefix)
    return blocks


def _kind(model: nn.Module, name: str, course: ForwardPass, registered_after: bool) -> Kind:
    """The kind of the block that a tensor outside the layers belongs to. What the pass did not use goes by its registration."""
    place = course.places.get(name, "after" if registered_after else "before")
    if place != "after":
        return "embeddings"
    if not _in_base(name, base_prefix(model)):
        return "head"
    unused = name not in course.places
    return "norm" if name in course.hidden or (unused and _is_norm_parameter(model, name)) else "pooler"


def layer_index(name: str, stack_path: str) -> int | None:
    """The layer that a tensor belongs to. Names match by whole segments: layers.1 does not catch layers.10."""
    rest = name.removeprefix(stack_path + ".")
    if rest == name:
        return None
    segment = rest.split(".", 1)[0]
    return int(segment) if segment.isdigit() else None


def _check_own_layers(model: nn.Module, stack_path: str) -> None:
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    for shared in names.values():
        if len({layer_index(name, stack_path) for name in shared}) > 1:
            raise PartitionError(f"a layer of {type(model).__name__} has weights that are another's too: {shared[-1]} is {shared[0]}")


def _in_base(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(prefix + ".")


def _is_norm_parameter(model: nn.Module, name: str) -> bool:
    return is_norm(model.get_submodule(name.rpartition(".")[0]))


def _check(blocks: list[BlockSpec], model: nn.Module, prefix: str) -> None:
    names = [t.name for block in blocks for t in block.tensors]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
    missing = sorted({canonical(name, prefix) for name in own_tensors(model)} - set(names))
    if twice or missing:
        raise PartitionError(f"the blocks are not a partition: twice {twice}, in none {missing}", twice=twice, missing=missing)
    empty = [block.name for block in blocks if not block.num_parameters]
    if empty or not any(block.kind == "layer" for block in blocks):
        raise PartitionError(f"blocks without parameters: {empty or 'layers'}", blocks=empty)
