"""Builds a model from its configuration, and fills it from shards: no weights come from anywhere else."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn

from shared.blocks import own_tensors
from shared.errors import FedError
from shared.families import base_prefix, canonical
from shared.protocol import Task

transformers.logging.set_verbosity_error()

AUTO_CLASSES: dict[str, Any] = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
}


class AssemblyError(FedError):
    """Shards that are not exactly the tensors of the model they are meant for."""

    code = "assembly_failed"


class ModelUnknown(FedError):
    """A configuration that transformers cannot make a model of."""

    code = "model_unknown"


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    # Parameters take no memory and are not initialised; buffers that a model computes for itself (rotary frequencies) are real.
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def skeleton(config: Mapping[str, Any], task: Task | None, attention: str | None = None) -> nn.Module:
    """The model that `config` (the contents of a config.json) describes, its parameters on the meta device, dropout off.

    `task` picks the class; None takes the one the configuration names. `attention` is transformers' attn_implementation.
    Never runs remote code: a configuration whose classes
    are not part of transformers, or whose values do not fit together, raises `ModelUnknown`.
    """
    values = dict(config)
    if "auto_map" in values:
        raise ModelUnknown("this model needs code of its own (auto_map), which is never run; use one that transformers knows")
    model_type = values.pop("model_type", None)
    if model_type not in transformers.CONFIG_MAPPING:
        raise ModelUnknown(f"transformers {transformers.__version__} knows no model type {model_type!r}")
    try:
        return _skeleton(transformers.AutoConfig.for_model(model_type, **values), task, attention)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelUnknown(f"transformers {transformers.__version__} cannot make a model of this configuration: {error}") from error


def _skeleton(settings: Any, task: Task | None, attention: str | None) -> nn.Module:
    if attention is not None:
        settings._attn_implementation = attention
    with _parameters_on_meta():
        if task is not None:
            if type(settings) not in AUTO_CLASSES[task]._model_mapping:
                raise ModelUnknown(f"{settings.model_type} has no {task} model in transformers {transformers.__version__}")
            model = AUTO_CLASSES[task].from_config(settings)
        else:
            model = _named_class(settings).from_config(settings) if _is_auto(settings) else _named_class(settings)(settings)
    model.tie_weights()
    model.eval()  # frozen layers run without dropout, so that a visit is repeatable and a prefix could be cached
    assert isinstance(model, nn.Module)
    return model


def import_model_code() -> None:
    """Import what every model needs, two seconds of transformers' and torch's code, before a visit or a job waits for it."""
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    skeleton({"model_type": "bert", **sizes}, "text-classification")


def _is_auto(settings: Any) -> bool:
    return not (settings.architectures and hasattr(transformers, settings.architectures[0]))


def _named_class(settings: Any) -> Any:
    return transformers.AutoModel if _is_auto(settings) else getattr(transformers, settings.architectures[0])


def names_by_canonical(model: nn.Module) -> dict[str, str]:
    """The name in `model` of each of its own tensors, by canonical name."""
    prefix = base_prefix(model)
    return {canonical(name, prefix): name for name in own_tensors(model)}


def read_shard(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a shard by canonical name. On the CPU they are views of the mapped file: they cost no memory of their own."""
    with safe_open(path, framework="pt", device=device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


class Assembled:
    """A model whose tensors come from shards; blocks can be exchanged one by one."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._names = names_by_canonical(model)
        self._missing = set(self._names)

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put tensors, by canonical name, in the place of what the model held there; they are frozen and not copied."""
        for name, tensor in tensors.items():
            self._put(name, tensor)
        self.model.tie_weights()  # type: ignore[operator]
        self._missing -= set(tensors)

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        if name not in self._names:
            raise AssemblyError(f"a shard holds {name}, which the model does not have")
        path, _, leaf = self._names[name].rpartition(".")
        module = self.model.get_submodule(path)
        old = module._parameters.get(leaf)
        expected = old if old is not None else module._buffers[leaf]
        assert expected is not None
        if expected.shape != tensor.shape:
            raise AssemblyError(f"{name} has shape {list(tensor.shape)} in the shard, {list(expected.shape)} in the model")
        if old is not None:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[leaf] = tensor

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter of canonical name `name`."""
        return self.model.get_parameter(self._names[name])

    def is_parameter(self, name: str) -> bool:
        path, _, leaf = self._names[name].rpartition(".")
        return leaf in self.model.get_submodule(path)._parameters

    def module_of(self, name: str) -> nn.Module:
        """The module that holds the tensor of canonical name `name`."""
        return self.model.get_submodule(self._names[name].rpartition(".")[0])

    def check_complete(self) -> None:
        if self._missing:
            raise AssemblyError(f"no shard holds {', '.join(sorted(self._missing)[:5])}", missing=sorted(self._missing))
