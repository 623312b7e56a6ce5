"""Partitions a model into blocks: disjoint groups of tensors that together are all of it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

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
        BlockSpec(_block_name(kind, index, layers_per_block, stack.length), kind, tuple(tensors))
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


def select(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The block names that `patterns` mean, in model order: a name, `layers` for all layers, `layers.2-4` for a range, `all`.

    Raises `PartitionError` for a pattern that means no block, or only a part of one.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if _pattern_means(pattern, name)}
        if cut := [name for name in names if name not in found and _overlaps(pattern, name)]:
            raise PartitionError(f"{pattern!r} cuts through {', '.join(cut)}; blocks are trained whole", blocks=list(names))
        if not found:
            raise PartitionError(f"{pattern!r} means no block of this model; its blocks are {', '.join(names)}", blocks=list(names))
        chosen |= found
    return [name for name in names if name in chosen]


def layers_of(block: str) -> range:
    """The layers of a block of layers, by its name: `layers.2-3` holds 2 and 3. Raises `PartitionError` for another block."""
    found = _layer_range(block)
    if found is None:
        raise PartitionError(f"{block} is not a block of layers")
    return range(found[0], found[1] + 1)


def _pattern_means(pattern: str, name: str) -> bool:
    if pattern in ("all", name):
        return True
    if not name.startswith("layers."):
        return False
    if pattern == "layers":
        return True
    wanted, have = _layer_range(pattern), _layer_range(name)
    return wanted is not None and have is not None and wanted[0] <= have[0] and have[1] <= wanted[1]


def _overlaps(pattern: str, name: str) -> bool:
    wanted, have = _layer_range(pattern), _layer_range(name)
    return wanted is not None and have is not None and wanted[0] <= have[1] and have[0] <= wanted[1]


def _layer_range(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"layers\.(\d+)(?:-(\d+))?", text)
    return (int(match[1]), int(match[2] or match[1])) if match else None


def _block_name(kind: Kind, index: int, per_block: int, length: int) -> str:
    if kind != "layer":
        return kind
    first, last = index * per_block, min((index + 1) * per_block, length) - 1
    return f"layers.{first}" if first == last else f"layers.{first}-{last}"


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
