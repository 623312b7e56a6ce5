"""A model whose layers hold their weights only while they run, so that memory holds one layer and what comes before and after the stack."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedcybgd.coordinator.engine import device
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.block_names import layers_of
from fedcybgd.shared.contract.codec import EXACT, PRUNED, kind_of
from fedcybgd.shared.contract.errors import PartitionError
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.models.assembly import Assembled, skeleton
from fedcybgd.shared.tensors.codecs import read_encoded
from fedcybgd.shared.tensors.quantized import QuantizedTensor


class Streamed:
    """A model in float32, filled from shards in any codec, on the device that its engine measures on.

    Layers that are streamed are read anew each time they run, in the backward pass too: it runs them again from their input
    (activation checkpointing), so that neither weights nor activations of more than one layer are held.
    """

    def __init__(self, store: EngineStore, config: Mapping[str, Any], task: Task) -> None:
        self._store, self._device = store, device.chosen()
        self.model = skeleton(config, task)
        for path, buffer in list(self.model.named_buffers()):
            _set(*_holder(self.model, path), buffer.to(buffer.device if buffer.is_meta else self._device))
        self._assembled = Assembled(self.model)

    def layers(self, block: str) -> list[nn.Module]:
        """The layers of a block, as modules."""
        return [self._assembled.layers[index] for index in _layers_of(block)]

    def fill(self, shards: Iterable[ShardRef]) -> None:
        """Put all blocks of a model that is only run: layers are streamed; embeddings are looked up where they are stored, unless they are
        multiplied with as well (a tied head).
        """
        for shard in shards:
            if shard.block.startswith("layers."):
                self.stream(shard)
            elif shard.block == "embeddings" and not self._is_tied(shard):
                self.put_for_lookup(shard)
            else:
                self.put(shard)
        self.check_complete()

    def put(self, shard: ShardRef) -> None:
        """Put a block that stays."""
        self._assembled.put(self._read(shard))

    def put_for_lookup(self, shard: ShardRef) -> None:
        """Put a block whose embeddings are only looked up, never multiplied with: as they are stored, mapped from the file while they run.

        Mapped for longer, nearly all of it would count as memory: the system maps what lies around every row that is looked up.
        A card has them whole.
        """
        if self._device != device.CPU:
            self.put(shard)
            return
        names = self._names(shard)
        looked_up = {name: self._assembled.module_of(name) for name in names if type(self._assembled.module_of(name)) is nn.Embedding}
        self._assembled.put(self._mapped(shard, looked_up))
        for name, module in looked_up.items():
            _look_up(self.model, module, lambda name=name: self._mapped(shard, [name])[name])  # type: ignore[misc]
        self._assembled.put(self._read(shard, set(names) - set(looked_up)))

    def _is_tied(self, shard: ShardRef) -> bool:
        """Whether another module shares a parameter of this block."""
        names = [name for name in self._names(shard) if self._assembled.is_parameter(name)]
        mine = {id(self._assembled.parameter(name)) for name in names}
        return sum(id(p) in mine for m in self.model.modules() for p in m._parameters.values()) > len(mine)

    def open(self, shard: ShardRef) -> dict[str, nn.Parameter]:
        """Put a block that stays, with parameters that take gradients; by canonical name."""
        tensors = self._read(shard)
        self._assembled.put(tensors)
        parameters = {name: self._assembled.parameter(name) for name in tensors if self._assembled.is_parameter(name)}
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return parameters

    def drop(self, block: str) -> None:
        """Go on without the layers of `block`."""
        self._assembled.drop(_layers_of(block))

    def stream(self, shard: ShardRef) -> None:
        """Read the layers of a block when they run."""
        tensors = self._read(shard)
        (self._assembled.put_pruned if kind_of(shard.codec) == PRUNED else self._assembled.put)(tensors)
        for index, layer in zip(_layers_of(shard.block), self.layers(shard.block), strict=True):
            names = {name for name in tensors if self._assembled.layer_of(name) == index}
            places = [(self._assembled.module_of(name), name.rpartition(".")[2], name) for name in sorted(names)]
            _run_with(layer, places, lambda names=names: self._read(shard, names))  # type: ignore[misc]

    def check_complete(self) -> None:
        self._assembled.check_complete()

    def _read(self, shard: ShardRef, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Dense tensors, in float32 where they are numbers: views of the file where they are so stored."""
        with self._store.localised(shard.digest) as path:
            wanted = names if names is not None else _names(path)
            if shard.codec == EXACT:
                return {name: _exact(path, name, self._device) for name in wanted}
            stored = read_encoded(path, shard.codec)
            return {name: _dense(stored[name].to(self._device)) for name in wanted}

    def _names(self, shard: ShardRef) -> list[str]:
        with self._store.localised(shard.digest) as path:
            return _names(path)

    def _mapped(self, shard: ShardRef, names: Iterable[str]) -> dict[str, Tensor]:
        with self._store.localised(shard.digest) as path, safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return [name for name in file.keys() if "::" not in name]  # noqa: SIM118 - not a dict


def _exact(path: Path, name: str, where: str) -> Tensor:
    # Opened for each tensor: a file stays mapped, and counts as memory, as long as one of its tensors is held.
    with safe_open(path, framework="pt") as file:
        return _dense(file.get_tensor(name).to(where))


def _dense(tensor: Tensor | QuantizedTensor) -> Tensor:
    if isinstance(tensor, QuantizedTensor):
        return tensor.dequantize()
    return tensor.float() if tensor.is_floating_point() else tensor


class _LookedUp(nn.Embedding):
    """Embeddings that hold nothing: rows come from where the table is stored, and all of it where a model reads it without a look-up."""

    stored: Callable[[], Tensor] | None
    """None: the model does not run"""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        held = self._parameters["weight"]
        assert held is not None
        return held if self.stored is None else self.stored().float()

    def forward(self, ids: Tensor) -> Tensor:
        assert self.stored is not None
        return functional.embedding(ids, self.stored(), self.padding_idx).float()


def _look_up(model: nn.Module, module: nn.Module, stored: Callable[[], Tensor]) -> None:
    """Make `module`, which are embeddings of `model`, look its rows up in what is stored while `model` runs."""
    held = module._parameters["weight"]
    assert held is not None
    _set(module, "weight", _nothing_of(held))
    module.__class__ = _LookedUp

    def let_go(*_: Any) -> None:
        module.stored = None  # type: ignore[assignment]

    def run(*_: Any) -> None:
        module.stored = stored  # type: ignore[assignment]

    let_go()
    model.register_forward_pre_hook(run)
    model.register_forward_hook(let_go, always_call=True)


def _nothing_of(held: Tensor) -> Tensor:
    # In float32, whatever it is stored in: some models make their masks in the dtype of their first parameter.
    return held.to("meta", torch.float32 if held.is_floating_point() else held.dtype)


def _run_with(layer: nn.Module, places: Iterable[tuple[nn.Module, str, str]], read: Callable[[], dict[str, Tensor]]) -> None:
    """Make `layer` read its tensors when it runs, and let go of them afterwards. `places`: module, attribute, canonical name."""
    inner = layer.forward
    places = list(places)

    def release() -> None:
        for module, leaf, _ in places:
            held = _tensor(module, leaf)
            _set(module, leaf, _nothing_of(held))

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = read()
        for module, leaf, name in places:
            _set(module, leaf, tensors[name])
        try:
            return inner(*args, **kwargs)
        finally:
            release()

    def forward(*args: Any, **kwargs: Any) -> Any:
        inputs = [*args, *kwargs.values()]
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        return run(*args, **kwargs)

    release()
    layer.forward = forward


def _tensor(module: nn.Module, leaf: str) -> Tensor:
    found: Tensor | None = module._parameters[leaf] if leaf in module._parameters else module._buffers[leaf]
    assert found is not None
    return found


def _holder(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    module, _, leaf = path.rpartition(".")
    return model.get_submodule(module), leaf


def _set(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor.detach(), requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _layers_of(block: str) -> range:
    found = layers_of(block)
    if not found:
        raise PartitionError(f"{block} is not a block of layers")
    return found
