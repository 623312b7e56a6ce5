"""Adapters in a model: their factors are parameters of the modules whose matrices they are beside, whatever class these have just then."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from fedcybgd.shared.contract.adapters import LEFT, RIGHT, WEIGHT, Adapters, factors_of
from fedcybgd.shared.contract.errors import PartitionError
from fedcybgd.shared.files.configuration import ModelUnknown
from fedcybgd.shared.models.blocks import layer_index, names_by_canonical
from fedcybgd.shared.models.families import find_stack

ADAPTABLE = (nn.Linear, Conv1D)


def linear_weights(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Canonical name → shape of the matrices in the model's layers that vectors are multiplied with."""
    try:
        stack = find_stack(model).path
    except PartitionError:
        return {}
    return {
        name: tuple(_module(model, path).weight.shape)
        for name, path in names_by_canonical(model).items()
        if path.endswith(WEIGHT) and layer_index(path, stack) is not None and type(_module(model, path)) in ADAPTABLE
    }


def attach(model: nn.Module, adapters: Adapters) -> None:
    """Give the model's matrices their factors, on the meta device. Raises `ModelUnknown` for a matrix that is not there or that none can be beside."""
    known, names = linear_weights(model), names_by_canonical(model)
    for weight in adapters.matrices:
        if weight not in known:
            raise ModelUnknown(f"config.json: an adapter is beside {weight[:100]!r}, and the layers of this model have no such matrix")
        module, (rows, columns) = _module(model, names[weight]), known[weight]
        if LEFT in module._parameters or adapters.rank > min(rows, columns):
            raise ModelUnknown(f"config.json: no adapter of rank {adapters.rank} can be beside {weight}, or it has one already")
        left, right = torch.empty(rows, adapters.rank, device="meta"), torch.empty(adapters.rank, columns, device="meta")
        _place(module, left, right, adapters.scale)


def _place(module: Any, left: Tensor, right: Tensor, scale: float) -> RemovableHandle:
    module.register_parameter(LEFT, nn.Parameter(left))
    module.register_parameter(RIGHT, nn.Parameter(right))
    module.adapter_scale = scale
    add = _add_inputs_first if isinstance(module, Conv1D) else _add
    handle: RemovableHandle = module.register_forward_hook(add, with_kwargs=True)
    return handle


class Lent:
    """Factors that matrices have for a while: they begin as `initial` has them, from `seed` alone, and go at `take_away`."""

    def __init__(self, model: nn.Module, matrices: Mapping[str, tuple[int, ...]], rank: int, scale: float, seed: int, device: str) -> None:
        """`matrices` are canonical names of weights with their shapes."""
        names = names_by_canonical(model)
        self._modules, self._handles = [_module(model, names[weight]) for weight in matrices], list[RemovableHandle]()
        self.parameters: dict[str, nn.Parameter] = {}
        """by canonical name"""
        try:
            self._place_all(model, matrices, rank, scale, seed, device)
        except BaseException:  # no memory for them, say: the model lives on, and the next visit must find it as it was
            self.take_away()
            raise

    def _place_all(
        self, model: nn.Module, matrices: Mapping[str, tuple[int, ...]], rank: int, scale: float, seed: int, device: str
    ) -> None:
        for module, (rows, columns) in zip(self._modules, matrices.values(), strict=True):
            self._handles.append(_place(module, torch.empty(rows, rank), torch.empty(rank, columns), scale))
        factors = [factor for weight in matrices for factor in factors_of(weight)]
        paths = names_by_canonical(model)
        for name, value in initial(model, factors, seed).items():
            module, leaf = _module(model, paths[name]), paths[name].rpartition(".")[2]
            module._parameters[leaf] = self.parameters[name] = nn.Parameter(value.to(device))

    def take_away(self) -> None:
        """The model is as it was before, also where not all of them had been placed."""
        for handle in self._handles:
            handle.remove()
        for module in self._modules:
            module._parameters.pop(LEFT, None)
            module._parameters.pop(RIGHT, None)
            vars(module).pop("adapter_scale", None)


def _module(model: nn.Module, path: str) -> Any:
    return model.get_submodule(path.rpartition(".")[0])


def _add(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
    x = args[0] if args else next(iter(kwargs.values()))
    total: Tensor = output + functional.linear(functional.linear(x, module.adapter_right), module.adapter_left) * module.adapter_scale
    return total


def _add_inputs_first(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
    x = args[0] if args else next(iter(kwargs.values()))
    total: Tensor = output + (x @ module.adapter_left) @ module.adapter_right * module.adapter_scale
    return total


def has_inputs_first(model: nn.Module, path: str) -> bool:
    """Whether the matrix that a tensor of this name is, or belongs to, is (inputs, outputs)."""
    return isinstance(_module(model, path), Conv1D)


def initial(model: nn.Module, names: Iterable[str], seed: int) -> dict[str, Tensor]:
    """Factors at the start, float32, from `seed` alone, by canonical name: those that meet the inputs as peft draws them, the others zero.

    So the model is what it was.
    """
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:adapters".encode()).digest()[:8], "big") >> 1
    generator, paths, made = torch.Generator().manual_seed(drawn), names_by_canonical(model), {}
    for name in names:
        shape, turned = model.get_parameter(paths[name]).shape, has_inputs_first(model, paths[name])
        made[name] = torch.zeros(shape)
        if name.endswith(f".{LEFT if turned else RIGHT}"):
            values = nn.init.kaiming_uniform_(torch.empty(shape[::-1] if turned else shape), a=math.sqrt(5), generator=generator)
            made[name] = (values.T if turned else values).contiguous()
    return made


def merged(weight: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """The matrix that does what it and its adapter do together, in float32."""
    return weight.float() + product(left.float(), right.float()) * scale


def product(left: Tensor, right: Tensor, rows: slice | None = None) -> Tensor:
    """left · right, of some rows; single numbers are multiplied and added one after another, so that the bits are the same on every machine."""
    part = left if rows is None else left[rows]
    total = part[:, :1] * right[:1]
    for index in range(1, left.shape[1]):
        total = total + part[:, index : index + 1] * right[index : index + 1]
    return total
