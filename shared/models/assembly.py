"""Builds a model from its configuration, and fills it from shards: no weights come from anywhere else."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.dynamic_module_utils
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fedcybgd.shared.contract.adapters import FIELD, Adapters
from fedcybgd.shared.contract.errors import FedError, PartitionError
from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.files.configuration import ModelUnknown, in_a_line
from fedcybgd.shared.models.adapters import attach
from fedcybgd.shared.models.blocks import layer_index, names_by_canonical
from fedcybgd.shared.models.layers import AssemblyError, LayerStack, Passthrough
from fedcybgd.shared.models.model_classes import base_model_of, model_of, settings_of
from fedcybgd.shared.models.pruning import check_shapes, fit, groups, narrowed, shapes_of, widths_of

__all__ = ["Assembled", "AssemblyError", "ModelUnknown", "Passthrough", "import_model_code", "names_by_canonical", "read_shard", "skeleton"]

transformers.logging.set_verbosity_error()
# Where a configuration asks for code of its own, transformers would wait this long for somebody to type "y".
transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


class _Here(threading.local):
    on_meta = False


_here = _Here()


def _to_meta(_module: nn.Module, _name: str, param: nn.Parameter) -> nn.Parameter | None:
    if not _here.on_meta or param.device.type == "meta":
        return None
    bare = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
    # transformers draws no values for what is marked so; on meta nothing comes of them, and it takes most of a skeleton's time.
    bare._is_hf_initialized = True  # type: ignore[attr-defined]
    return bare


# Once and for good: a hook that came and went would change what other threads go through just then. It does nothing elsewhere.
register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    # Parameters take no memory and are not initialised; buffers that a model computes for itself (rotary frequencies) are real.
    before, _here.on_meta = _here.on_meta, True
    try:
        yield
    finally:
        _here.on_meta = before


def skeleton(config: Mapping[str, Any], task: Task | None, attention: str | None = None) -> nn.Module:
    """The model that `config` (the contents of a config.json) describes, its parameters on the meta device, dropout off.

    `task` picks the class; None takes the one the configuration names. `attention` is transformers' attn_implementation.
    Never runs remote code: a configuration whose classes
    are not part of transformers, or whose values do not fit together, raises `ModelUnknown`.
    """
    return _made(config, lambda settings: model_of(settings, task), attention)


def base_skeleton(config: Mapping[str, Any]) -> nn.Module:
    """The same, of the base model, without a head."""
    return _made(config, base_model_of)


def _made(config: Mapping[str, Any], make: Callable[[Any], Any], attention: str | None = None) -> nn.Module:
    try:
        settings = settings_of({name: value for name, value in config.items() if name != FIELD})
        if attention is not None:
            settings._attn_implementation = attention
        with _parameters_on_meta():
            model = make(settings)
        model.tie_weights()
        if FIELD in config:
            attach(model, Adapters.model_validate(config[FIELD]))
    except FedError:
        raise
    except Exception as error:  # whatever a configuration of nonsense leads to, somewhere in transformers
        raise ModelUnknown(
            f"transformers {transformers.__version__} cannot make a model of this configuration: {in_a_line(error)}"
        ) from error
    model.eval()  # frozen layers run without dropout, so that a visit is repeatable and a prefix could be cached
    assert isinstance(model, nn.Module)
    return model


def import_model_code() -> None:
    """Import what every model needs, two seconds of transformers' and torch's code, before a visit or a job waits for it."""
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    skeleton({"model_type": "bert", **sizes}, "text-classification")


def read_shard(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a shard by canonical name. On the CPU they are views of the mapped file: they cost no memory of their own."""
    with safe_open(path, framework="pt", device=device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


class Assembled:
    """A model whose tensors come from shards; blocks can be exchanged one by one, layers be dropped or narrowed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._names = names_by_canonical(model)
        self._specs = {name: self._spec(path) for name, path in self._names.items()}
        self._missing = set(self._names)
        self._stack = _stack_of(model)

    def _spec(self, path: str) -> tuple[tuple[int, ...], bool]:
        module, _, leaf = path.rpartition(".")
        holder = self.model.get_submodule(module)
        tensor = holder._parameters.get(leaf)
        expected = tensor if tensor is not None else holder._buffers[leaf]
        assert expected is not None
        return tuple(expected.shape), tensor is not None

    @property
    def layers(self) -> nn.ModuleList:
        """The stack of layers, as they are now. Modules of a layer are others after it was dropped, pruned or restored."""
        return self._need_stack().layers

    @property
    def dropped(self) -> frozenset[int]:
        return frozenset(self._stack.dropped if self._stack else ())

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put tensors, by canonical name, in the place of what the model held there; they are frozen and not copied.

        Layers that are dropped or pruned are whole again, and then need all of their tensors.
        """
        for name in tensors:
            if name not in self._names:
                raise AssemblyError(f"a shard holds {name}, which the model does not have")
        check_shapes({name: tuple(t.shape) for name, t in tensors.items()}, {name: shape for name, (shape, _) in self._specs.items()})
        for index in sorted({i for i in map(self.layer_of, tensors) if i is not None}):
            self.restore(index)
        self._put(tensors)

    def put_pruned(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put the tensors of a pruned block of layers; its layers then work with the neurons and heads that these have.

        Raises `AssemblyError`, which names a tensor, unless they are whole layers of this model and all of one width.
        """
        stack = self._need_stack()
        found: dict[int, dict[str, str]] = {}
        for name in tensors:
            index = self.layer_of(name)
            if index is None:
                raise AssemblyError(f"a pruned shard holds {name}, which is not of a layer of this model")
            found.setdefault(index, {})[self._names[name].removeprefix(f"{stack.path}.{index}.")] = name
        # How many units are left of a group of so many: layers that are alike must be narrowed alike.
        widths: dict[int, dict[Any, int]] = {}
        wanted: dict[tuple[str, int], int] = {}
        for index, names in found.items():
            original = stack.originals[index]
            full = shapes_of(original)
            if lacking := sorted(full.keys() - names.keys()):
                raise AssemblyError(f"a pruned shard lacks {', '.join(lacking[:5])} of layer {index}")
            shapes = {relative: tuple(tensors[name].shape) for relative, name in names.items()}
            units = groups(original, self.model)
            left = widths_of(units, shapes)
            widths[index] = {group.kind: wanted.setdefault((group.kind, group.units), left[group.kind]) for group in units}
            narrow = narrowed(units, full, widths[index])
            check_shapes({names[r]: shape for r, shape in shapes.items()}, {names[r]: shape for r, shape in narrow.items()})
        for index in found:
            layer = stack.original(index)
            fit(layer, self.model, groups(layer, self.model), widths[index])
            stack.exchange(index, layer)
        self._put(tensors)

    def drop(self, layers: Iterable[int]) -> None:
        """Do without these layers of the stack, by index: what enters them leaves them. Their weights are let go of."""
        self._need_stack().drop(layers)

    def restore(self, layer: int) -> None:
        """Make a layer that was dropped or pruned the one that the model was made with; its tensors are missing until they are put."""
        if self._need_stack().renew(layer):
            self._missing |= {name for name in self._names if self.layer_of(name) == layer}

    def layer_of(self, name: str) -> int | None:
        """The index of the layer that the tensor of canonical name `name` belongs to, if any."""
        return layer_index(self._names[name], self._stack.path) if self._stack and name in self._names else None

    def _put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            path, _, leaf = self._names[name].rpartition(".")
            module = self.model.get_submodule(path)
            if self._specs[name][1]:
                module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
            else:
                module._buffers[leaf] = tensor
        self.model.tie_weights()  # type: ignore[operator]
        self._missing -= set(tensors)

    def _need_stack(self) -> LayerStack:
        if self._stack is None:
            raise AssemblyError("this model has no stack of layers, so none can be dropped or pruned")
        return self._stack

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter of canonical name `name`."""
        return self.model.get_parameter(self._names[name])

    def is_parameter(self, name: str) -> bool:
        return self._specs[name][1]

    def module_of(self, name: str) -> nn.Module:
        """The module that holds the tensor of canonical name `name`."""
        return self.model.get_submodule(self._names[name].rpartition(".")[0])

    def check_complete(self) -> None:
        """Raises `AssemblyError` when a tensor is missing that no dropped layer has, or when every layer is dropped."""
        missing = sorted(name for name in self._missing if self.layer_of(name) not in self.dropped)
        if missing:
            raise AssemblyError(f"no shard holds {', '.join(missing[:5])}", missing=missing)
        if self._stack is not None and len(self.dropped) == len(self.layers):
            raise AssemblyError("every layer is dropped; one at least must stay")


def _stack_of(model: nn.Module) -> LayerStack | None:
    try:
        return LayerStack(model)
    except PartitionError:
        return None
