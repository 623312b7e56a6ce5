"""Partitions a model into blocks: disjoint groups of tensors that together are all of it."""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from shared.block_names import block_name
from shared.errors import PartitionError
from shared.families import base_prefix, canonical, family_of, find_stack, is_norm

Kind = Literal["embeddings", "layer", "norm", "pooler", "head"]
FRESHLY_MADE: tuple[Kind, ...] = ("pooler", "head")
"""Blocks that a checkpoint may lack: they come after what every task shares, and can be made afresh for a run."""

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


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

    @property
    def num_parameters(self) -> int:
        return sum(t.numel for t in self.tensors if t.is_parameter)


def own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by their name in `model`, in registration order, tied ones once."""
    seen: set[int] = set()
    result: dict[str, torch.Tensor] = {}
    # Parameters are the same objects in state_dict(keep_vars=True), so ties are found by identity.
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            result[name] = tensor
    return result


def names_by_canonical(model: nn.Module) -> dict[str, str]:
    """The name in `model` of each of its own tensors, by canonical name."""
    prefix = base_prefix(model)
    return {canonical(name, prefix): name for name in own_tensors(model)}


def partition(model: nn.Module, layers_per_block: int = 1) -> list[BlockSpec]:
    """The blocks of `model` in the order of its forward pass: embeddings, layers, final norm, pooler, head.

    `layers_per_block` consecutive layers make one block. The model may be on the meta device. Tied tensors belong to the
    block that holds the first of their names. Raises `PartitionError` for a model that cannot be split so.
    """
    stack = find_stack(model)
    prefix = base_prefix(model)
    family = family_of(model)
    groups: dict[tuple[Kind, int], list[TensorSpec]] = {}
    past_stack = False
    for name, tensor in own_tensors(model).items():
        spec = TensorSpec(canonical(name, prefix), tuple(tensor.shape), isinstance(tensor, nn.Parameter))
        index = layer_index(name, stack.path)
        if index is not None:
            past_stack = True
            key: tuple[Kind, int] = ("layer", index // layers_per_block)
        elif _matches(spec.name, family.norm) or (past_stack and _in_base(name, prefix) and _is_norm_parameter(model, name)):
            key = ("norm", 0)
        elif past_stack and not _matches(spec.name, family.before):
            key = ("pooler" if _in_base(name, prefix) else "head", 0)
        else:
            key = ("embeddings", 0)
        groups.setdefault(key, []).append(spec)
    order: list[Kind] = ["embeddings", "layer", "norm", "pooler", "head"]
    blocks = [
        BlockSpec(block_name(kind, index, layers_per_block, stack.length), kind, tuple(tensors))
        for (kind, index), tensors in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]
    _check(blocks, model, prefix)
    return blocks


def layer_index(name: str, stack_path: str) -> int | None:
    """The layer that a tensor belongs to. Names match by whole segments: layers.1 does not catch layers.10."""
    rest = name.removeprefix(stack_path + ".")
    if rest == name:
        return None
    segment = rest.split(".", 1)[0]
    return int(segment) if segment.isdigit() else None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


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
