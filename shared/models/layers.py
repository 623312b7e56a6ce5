"""The stack of a model's layers, where single layers are dropped, replaced and brought back."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.models.families import find_stack


class AssemblyError(FedError):
    """Shards that are not exactly the tensors of the model they are meant for."""

    code = "assembly_failed"


class Passthrough(nn.Module):
    """A dropped layer: the hidden states that go in come out, in the structure that a layer of this model returns.

    It has the plain attributes (attention_type and the like) of the layer whose place it takes.
    """

    def __init__(self, layer: nn.Module, structure: "Structure") -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if not name.startswith("_") and name not in vars(self) and isinstance(value, str | int | float | None):
                setattr(self, name, value)
        self._structure = structure

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        length = self._structure.length(args, kwargs)
        return hidden if length is None else (hidden, *[None] * (length - 1))


class Structure:
    """What the layers of one model return: hidden states, or a tuple that begins with them. Found out once, by asking one."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self._layers = layers
        self._known: list[int | None] = []

    def length(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        """The length of the tuple, None for bare hidden states. `args` and `kwargs` are what a layer was called with."""
        if not self._known:
            output = self._ask(_without_caches(args), {name: _without_cache(value) for name, value in kwargs.items()})
            self._known.append(len(output) if isinstance(output, tuple) else None)
        return self._known[0]

    def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layers = [layer for layer in self._layers if not isinstance(layer, Passthrough)]
        # Those with weights first: one whose weights were let go of cannot compute, or something stands in for it.
        layers.sort(key=lambda layer: any(p.is_meta for p in layer.parameters()))
        reasons: list[str] = []
        for layer in layers:
            try:
                with torch.no_grad():
                    return layer.forward(*args, **kwargs)  # not layer(...): hooks would take it for a part of the pass
            except (RuntimeError, NotImplementedError) as error:
                reasons.append(str(error))
        raise AssemblyError(f"no layer tells what a dropped one has to return: {reasons[0] if reasons else 'all are dropped'}")


def _without_caches(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_without_cache(value) for value in args)


def _without_cache(value: Any) -> Any:
    # A layer that is only asked must not write its keys and values into the cache of the real pass.
    return None if isinstance(value, Cache) else value


class LayerStack:
    """The layers of a model, each kept as it was made, without its weights, so that it can be put back."""

    def __init__(self, model: nn.Module) -> None:
        self.path = find_stack(model).path
        layers = model.get_submodule(self.path)
        assert isinstance(layers, nn.ModuleList)
        self.layers = layers
        self.originals = [_without_weights(layer) for layer in self.layers]
        self.dropped: set[int] = set()
        self.changed: set[int] = set()
        """Layers that are not as the model made them: dropped or of another width."""
        self._structure = Structure(self.layers)

    def drop(self, indices: Iterable[int]) -> None:
        """Put a `Passthrough` in the place of each; indices of the others stay, and the weights are let go of."""
        for index in indices:
            self._check(index)
            if index not in self.dropped:
                self.layers[index] = Passthrough(self.originals[index], self._structure)
                self.dropped.add(index)
                self.changed.add(index)

    def original(self, index: int) -> nn.Module:
        """A layer as the model made it, without weights (on the meta device), not yet in its place."""
        self._check(index)
        return _without_weights(self.originals[index])

    def exchange(self, index: int, layer: nn.Module) -> None:
        """Put `layer`, which is of another width than the model made it, in its place."""
        self.layers[index] = layer
        self.dropped.discard(index)
        self.changed.add(index)

    def renew(self, index: int) -> bool:
        """Put a layer in its place as the model made it, without weights; False when it is so already, and then stays."""
        self._check(index)
        if index not in self.changed:
            return False
        self.layers[index] = _without_weights(self.originals[index])
        self.dropped.discard(index)
        self.changed.discard(index)
        return True

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self.layers):
            raise AssemblyError(f"this model has no layer {index}; it has {len(self.layers)}")


def _without_weights(layer: nn.Module) -> nn.Module:
    """A copy of a layer whose parameters take no memory; its configuration is shared, its computed buffers are copied."""
    memo: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in layer.parameters()}
    memo |= {id(module.config): module.config for module in layer.modules() if hasattr(module, "config")}
    return copy.deepcopy(layer, memo)
