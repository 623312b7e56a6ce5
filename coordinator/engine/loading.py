"""What transformers would put into a model from a checkpoint, found out by its own rules and without loading a weight."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import core_model_loading as rules
from transformers.conversion_mapping import get_model_conversion_mapping

from fedcybgd.coordinator.engine.checkpoint import Source
from fedcybgd.coordinator.engine.model_directory import ModelRefused
from fedcybgd.coordinator.engine.shards import Piece, from_file, from_tensor
from fedcybgd.shared.tensors.dtypes import DTYPE_NAMES, DTYPES

REARRANGING = (
    rules.MergeModulelist, rules.Concatenate, rules.Chunk, rules.Split, rules.SplitModulelist, rules.Transpose, rules.Interleave,
    rules.PermuteForRope,
)  # fmt: skip
"""Conversions that only move numbers about: the result is the same in whatever dtype they are done."""
ROWS = 1 << 10


@dataclass(frozen=True)
class Copied:
    """A tensor that is in the checkpoint as the model has it."""

    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.tensor.shape

    @property
    def dtype(self) -> str:
        return self.source.tensor.dtype

    def piece(self, name: str) -> Piece:
        return from_file(self.source.path, self.source.header, self.source.tensor, name)

    def rows(self) -> Iterator[Tensor]:
        """Its values in float32, a part at a time."""
        with safe_open(self.source.path, framework="pt") as file:
            if not self.shape:
                yield file.get_tensor(self.source.tensor.name).float()
                return
            part = file.get_slice(self.source.tensor.name)
            for start in range(0, self.shape[0], ROWS):
                yield part[start : start + ROWS].float()


@dataclass(frozen=True)
class Converted:
    """A tensor that transformers makes of several in the checkpoint, or of a part of one: experts that are stacked, say."""

    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], Tensor]
    """Holds what it is made of, and itself, in memory."""

    def piece(self, name: str) -> Piece:
        return from_tensor(name, self.shape, DTYPES[self.dtype], self.make)

    def rows(self) -> Iterator[Tensor]:
        yield self.make().float()


@dataclass(frozen=True)
class Computed:
    """A buffer that the model computes for itself and a checkpoint may hold, but this one does not."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> str:
        return DTYPE_NAMES[self.value.dtype]

    def piece(self, name: str) -> Piece:
        return from_tensor(name, self.shape, self.value.dtype, lambda: self.value)

    def rows(self) -> Iterator[Tensor]:
        yield self.value.float()


Found = Copied | Converted | Computed


@dataclass
class Loading:
    """What one class of model would get: by the names that it has in the class's state, and what of the checkpoint it has no place for."""

    found: dict[str, Found] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    tied: bool = True
    """False: the configuration ties matrices that differ in the checkpoint, so they are two"""


def loading(model: Any, checkpoint: Mapping[str, Source]) -> Loading:
    """What `from_pretrained` would load into `model` (a skeleton of it will do). Raises `ModelRefused` for conversions that compute."""
    state: dict[str, Tensor] = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, rules.WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, rules.WeightConverter)]
    of_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    result, groups = Loading(), dict[str, list[tuple[str, str]]]()
    for raw in sorted(checkpoint, key=rules.dot_natural_key):
        name, pattern = rules.rename_source_key(raw, renamings, converters, model.base_model_prefix, state)
        if name not in state and raw in state:
            name, pattern = rules.rename_source_key(raw, [], [], model.base_model_prefix, state)
        if name not in state:
            result.unexpected.append(raw)
        elif pattern is not None:
            groups.setdefault(name, []).append((pattern, raw))
        else:
            result.found.setdefault(name, Copied(checkpoint[raw]))
    for name, parts in groups.items():
        converter = of_pattern[parts[0][0]]
        made = _converted(model, name, converter, [(pattern, raw, checkpoint[raw]) for pattern, raw in parts])
        result.found |= {target: tensor for target, tensor in made.items() if target in state}
    _tie(model, result)
    return result


def _converted(model: Any, name: str, converter: Any, parts: Sequence[tuple[str, str, Source]]) -> dict[str, Found]:
    """What a converter makes of some tensors; that it would is found out with tensors of their shapes and without values."""
    if not all(isinstance(operation, REARRANGING) for operation in converter.operations):
        names = ", ".join(type(operation).__name__ for operation in converter.operations)
        raise ModelRefused(
            f"{name} is stored in a form ({names}) that only transformers can read: load it there, save it, and add the result"
        )

    def convert(read: Callable[[Source], Tensor]) -> dict[str, Tensor]:
        mapping = deepcopy(converter)
        for pattern, raw, source in parts:
            mapping.add_tensor(name, raw, pattern, read(source))
        made = mapping.convert(name, model=model, config=model.config)
        return {target: value[0] if isinstance(value, list) else value for target, value in made.items()}

    def outline(source: Source) -> Tensor:
        if source.tensor.dtype not in DTYPES:
            raise ModelRefused(f"{source.tensor.name} is {source.tensor.dtype}, must be a float")
        return torch.empty(source.tensor.shape, dtype=DTYPES[source.tensor.dtype], device="meta")

    try:
        outlines = convert(outline)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        held = ", ".join(raw for _, raw, _ in parts[:3])
        raise ModelRefused(f"{name} cannot be made of {held} and the like, as transformers does: {error}") from error

    def make(target: str) -> Tensor:
        return convert(_read)[target].clone()

    return {
        target: Converted(tuple(tensor.shape), DTYPE_NAMES[tensor.dtype], lambda target=target: make(target))  # type: ignore[misc]
        for target, tensor in outlines.items()
    }


def _read(source: Source) -> Tensor:
    with safe_open(source.path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(source.tensor.name)
        return tensor


def _tie(model: Any, result: Loading) -> None:
    """Ties work both ways: a tensor that is not there is its partner, whichever of the two is in the checkpoint."""
    pairs = list(model.get_expanded_tied_weights_keys(all_submodels=True).items())
    partners: dict[str, list[str]] = {}
    for target, source in pairs:
        partners.setdefault(source, []).append(target)
    for source, targets in partners.items():
        group = [source, *targets]
        there = [name for name in group if name in result.found]
        if len(there) > 1 and not all(_same(result.found[there[0]], result.found[name]) for name in there[1:]):
            result.tied = False
        if there:
            for name in group:
                result.found.setdefault(name, result.found[there[0]])


def _same(one: Found, other: Found) -> bool:
    if one.shape != other.shape:
        return False
    if isinstance(one, Copied) and isinstance(other, Copied):
        return all(torch.equal(a, b) for a, b in zip(one.rows(), other.rows(), strict=True))
    return torch.equal(torch.cat([*one.rows()]), torch.cat([*other.rows()]))


def ignored(model: nn.Module) -> list[str]:
    """Patterns of names that a checkpoint may hold and `model` does without, as its class says or as older versions saved them."""
    patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.append(r"(^|\.)position_ids$")
    return patterns
