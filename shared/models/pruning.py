"""Narrows a layer: takes whole MLP neurons and whole attention heads out of it, those with the smallest weights."""

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedcybgd.shared.contract.errors import PartitionError
from fedcybgd.shared.models.blocks import layer_index, names_by_canonical, own_tensors
from fedcybgd.shared.models.families import family_of, find_stack
from fedcybgd.shared.models.layers import AssemblyError
from fedcybgd.shared.tensors.codecs import CodecError

Kind = Literal["neurons", "heads"]
ATTENTION_CLASS = re.compile(r"attention", re.IGNORECASE)
MIN_PERCENT, MAX_PERCENT = 1, 90
CHUNK = 1024
"""Rows or columns whose squares are in memory at once."""


@dataclass(frozen=True)
class Cut:
    """A dimension of a tensor of the layer that is made of units. A unit has `size` indices in each part of it.

    `parts` are (offset, size): a projection that is several in one (queries, keys, values) has a part for each.
    """

    name: str
    dim: int
    parts: tuple[tuple[int, int], ...]

    def indices(self, units: Tensor) -> Tensor:
        """The indices along `dim` of `units` (ascending, int64), part by part."""
        return torch.cat([(offset + units[:, None] * size + torch.arange(size)).flatten() for offset, size in self.parts])

    @property
    def unit_size(self) -> int:
        return sum(size for _, size in self.parts)


@dataclass(frozen=True)
class UnitGroup:
    """Units that can be taken out of a layer: neurons, or heads (with grouped queries: key-value groups with their queries)."""

    kind: Kind
    units: int
    cuts: tuple[Cut, ...]


def kept(units: int, percent: int) -> int:
    """How many of `units` stay when `percent` of the width goes: rounded to the nearest, at least one."""
    if not MIN_PERCENT <= percent <= MAX_PERCENT:
        raise CodecError(f"pruned:{percent} is out of range: between {MIN_PERCENT} and {MAX_PERCENT} percent of the width can go")
    return max(1, (units * (100 - percent) + 50) // 100)


def prune_block(model: nn.Module, tensors: Mapping[str, Tensor], percent: int) -> dict[str, Tensor]:
    """The tensors of a block of layers, by canonical name, without the `percent` of neurons and heads that weigh least.

    `model` is the model or its skeleton, unpruned. What stays keeps its order and dtype; every layer is looked at for itself,
    all keep equally many. The importance of a unit is the product, over its matrices (with their biases), of the L2 norms of
    what it has of them: for a neuron it bounds what it can add to the output. Against the sum of the squares it left, with all
    layers pruned by 25 %, gradients of stories260K at a mean cosine of 0.17 instead of 0.14 (on its own stories), and the
    embeddings of MiniLM at 0.742 instead of 0.738.
    Raises `CodecError` for a percentage outside 1 to 90, `PartitionError` for layers whose MLP is not understood, and
    `AssemblyError` for tensors that are not whole layers of this model.
    """
    result: dict[str, Tensor] = {}
    for layer, names in whole_layers(model, {name: tuple(t.shape) for name, t in tensors.items()}):
        own = {relative: tensors[name] for relative, name in names.items()}
        for group in groups(layer, model):
            importance = _importance(group, own)
            order = torch.argsort(importance, descending=True, stable=True)
            units = order[: kept(group.units, percent)].sort().values
            for cut in group.cuts:
                own[cut.name] = own[cut.name].index_select(cut.dim, cut.indices(units).to(own[cut.name].device))
        result |= {name: own[relative].contiguous() for relative, name in names.items()}
    return {name: result[name] for name in tensors}


def whole_layers(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[nn.Module, dict[str, str]]]:
    """The layers that tensors of these names are all of, each with its names: canonical by relative to the layer."""
    path = find_stack(model).path
    known = names_by_canonical(model)
    found: dict[int, dict[str, str]] = {}
    for name in shapes:
        index = layer_index(known[name], path) if name in known else None
        if index is None:
            raise AssemblyError(f"{name} is not a tensor of a layer of this model; only layers can be pruned")
        found.setdefault(index, {})[known[name].removeprefix(f"{path}.{index}.")] = name
    for index, names in sorted(found.items()):
        layer = model.get_submodule(f"{path}.{index}")
        full = shapes_of(layer)
        if lacking := sorted(full.keys() - names.keys()):
            raise AssemblyError(f"layer {index} is not whole: {', '.join(lacking[:5])} missing")
        check_shapes({name: shapes[name] for name in names.values()}, {name: full[relative] for relative, name in names.items()})
        yield layer, names


def shapes_of(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in own_tensors(layer).items()}


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in found.items():
        if tuple(shape) != expected[name]:
            raise AssemblyError(f"{name} has shape {list(shape)} in the shard, {list(expected[name])} in the model")


def groups(layer: nn.Module, model: nn.Module) -> list[UnitGroup]:
    """What can be taken out of a layer of `model`: neurons always, heads where its attention works with fewer of them.

    Raises `PartitionError` for a layer without an MLP of a known form (mixtures of experts).
    """
    attentions = _attentions(layer)
    inside = tuple(f"{path}." for path in attentions)
    outside = {path: module for path, module in _projections(layer).items() if not path.startswith(inside)}
    found = [_neurons(layer, outside, inside)]
    if family_of(model).heads and len(attentions) == 1:
        heads = _heads(layer, attentions[0], model.config)
        found += [heads] if heads is not None and heads.units > 1 else []
    return found


def narrowed(found: list[UnitGroup], shapes: Mapping[str, tuple[int, ...]], widths: Mapping[Kind, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's tensors, by relative name, with so many units left of each group."""
    result = {name: list(shape) for name, shape in shapes.items()}
    for group in found:
        for cut in group.cuts:
            result[cut.name][cut.dim] = cut.unit_size * widths[group.kind]
    return {name: tuple(shape) for name, shape in result.items()}


def widths_of(found: list[UnitGroup], shapes: Mapping[str, tuple[int, ...]]) -> dict[Kind, int]:
    """How many units of each group tensors of these shapes have, as most of them say; all units where none says it."""
    result: dict[Kind, int] = {}
    for group in found:
        votes: Counter[int] = Counter()
        for cut in group.cuts:
            shape = shapes.get(cut.name, ())
            units, rest = divmod(shape[cut.dim], cut.unit_size) if len(shape) > cut.dim else (0, 0)
            if not rest and 1 <= units <= group.units:
                votes[units] += 1
        result[group.kind] = votes.most_common(1)[0][0] if votes else group.units
    return result


def fit(layer: nn.Module, model: nn.Module, found: list[UnitGroup], widths: Mapping[Kind, int]) -> None:
    """Make the modules of an unpruned layer expect so many units; the tensors are put in by the caller."""
    for path, module in _projections(layer).items():
        for group in found:
            for cut in group.cuts:
                if cut.name == f"{path}.weight":
                    _resize(module, cut, cut.unit_size * widths[group.kind])
    heads = next((group for group in found if group.kind == "heads"), None)
    if heads is not None:
        _fit_attention(layer.get_submodule(_attentions(layer)[0]), model, heads.units, widths["heads"])


def _resize(module: nn.Module, cut: Cut, size: int) -> None:
    if isinstance(module, Conv1D):
        setattr(module, "nf" if cut.dim == 1 else "nx", size)
    else:
        setattr(module, "out_features" if cut.dim == 0 else "in_features", size)


# What attentions call how many heads they have, and how wide these are together.
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "num_key_value_heads", "all_head_size", "split_size")


def _fit_attention(attention: nn.Module, model: nn.Module, units: int, left: int) -> None:
    for module in attention.modules():
        for name in COUNTS:
            if isinstance(value := getattr(module, name, None), int):
                setattr(module, name, value // units * left)
        if family_of(model).own_config and hasattr(module, "config"):
            settings = copy.copy(module.config)
            for name in ("num_attention_heads", "num_key_value_heads"):
                setattr(settings, name, getattr(settings, name) // units * left)
            module.config = settings


def _importance(group: UnitGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    """(units,) float64: the logarithm of the product of the norms of each unit's matrices."""
    squares: dict[tuple[str, int], Tensor] = {}
    for cut in group.cuts:
        each = _squares(tensors[cut.name], cut.dim)
        module = cut.name.rpartition(".")[0]  # a bias counts with its matrix
        for offset, size in cut.parts:
            units = each[offset : offset + group.units * size].view(group.units, size).sum(1)
            squares[module, offset] = squares[module, offset] + units if (module, offset) in squares else units
    return torch.stack(list(squares.values())).log().sum(0)


def _squares(tensor: Tensor, dim: int) -> Tensor:
    """(n,) float64 sums of squares of each index along `dim`, in chunks so that no wide copy is made."""
    lines = tensor.detach().reshape(tensor.shape[0], -1).transpose(0, dim).cpu()
    return torch.cat([lines[first : first + CHUNK].double().square().sum(1) for first in range(0, len(lines), CHUNK)])


def _projections(layer: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def _attentions(layer: nn.Module) -> list[str]:
    """The paths of the outermost modules that call themselves attention."""
    found = [path for path, module in layer.named_modules() if path and ATTENTION_CLASS.search(type(module).__name__)]
    return [path for path in found if not any(path.startswith(f"{other}.") for other in found)]


def _neurons(layer: nn.Module, outside: dict[str, nn.Module], inside: tuple[str, ...]) -> UnitGroup:
    *ups, down = outside or [""]
    sizes = {path: _sizes(module) for path, module in outside.items()}
    hidden, width = (sizes[down][1], sizes[down][0]) if down else (0, 0)
    plain = all(sizes[up] == (hidden, width) for up in ups)
    fused = len(ups) == 1 and sizes[ups[0]] == (hidden, 2 * width)
    if not ups or not (plain or fused):
        raise PartitionError(f"the layers ({type(layer).__name__}) have no MLP of a known form, so they cannot be pruned")
    parts = ((0, 1),) if plain else ((0, 1), (width, 1))
    cuts = [cut for up in ups for cut in _out(up, outside[up], parts)] + [_in(down, outside[down], ((0, 1),))]
    cut_names = {cut.name for cut in cuts} | {f"{down}.bias"}
    others = [(name, p) for name, p in layer.named_parameters() if name not in cut_names and not name.startswith(inside)]
    if wide := [name for name, p in others if width != hidden and width in p.shape]:
        raise PartitionError(f"the layers ({type(layer).__name__}) cannot be pruned: {wide[0]} is as wide as their MLP")
    return UnitGroup("neurons", width, tuple(cuts))


def _heads(layer: nn.Module, attention: str, config: Any) -> UnitGroup | None:
    settings = config.get_text_config()
    heads = settings.num_attention_heads
    groups_ = getattr(settings, "num_key_value_heads", None) or heads
    found = {path: module for path, module in _projections(layer).items() if path.startswith(f"{attention}.")}
    sizes = {path: _sizes(module) for path, module in found.items()}
    if len(found) == 2:
        # One projection for queries, keys and values, one behind another; the other is the way out.
        size = next((sizes[o][0] // heads for f, o in permutations(found) if sizes[f][1] * heads == sizes[o][0] * (heads + 2 * groups_)), 0)
        if not size:
            return None
        fused, out = sorted(found, key=lambda path: sizes[path][1] != (heads + 2 * groups_) * size)
        query = heads // groups_ * size
        cuts = _out(fused, found[fused], ((0, query), (heads * size, size), ((heads + groups_) * size, size)))
    elif len(found) == 4:
        *inputs, out = found
        size = sizes[out][0] // heads
        query = heads // groups_ * size
        unit = {heads * size: query, groups_ * size: size}
        if sorted(sizes[path][1] for path in inputs) != sorted([heads * size, groups_ * size, groups_ * size]):
            return None
        cuts = [cut for path in inputs for cut in _out(path, found[path], ((0, unit[sizes[path][1]]),))]
    else:
        return None
    cuts.append(_in(out, found[out], ((0, query),)))
    return UnitGroup("heads", groups_, tuple(cuts))


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Input and output features."""
    weight = module.get_parameter("weight")
    return (weight.shape[0], weight.shape[1]) if isinstance(module, Conv1D) else (weight.shape[1], weight.shape[0])


def _out(path: str, module: nn.Module, parts: tuple[tuple[int, int], ...]) -> list[Cut]:
    bias = [Cut(f"{path}.bias", 0, parts)] if getattr(module, "bias", None) is not None else []
    return [Cut(f"{path}.weight", 1 if isinstance(module, Conv1D) else 0, parts), *bias]


def _in(path: str, module: nn.Module, parts: tuple[tuple[int, int], ...]) -> Cut:
    return Cut(f"{path}.weight", 0 if isinstance(module, Conv1D) else 1, parts)
