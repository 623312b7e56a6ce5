"""Follows one forward pass of a model without its weights: which tensors come before its layers, and which after."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from fedcybgd.shared.contract.errors import PartitionError
from fedcybgd.shared.files.configuration import image_shape, image_tokens
from fedcybgd.shared.models.families import Stack, base_prefix

Place = Literal["before", "within", "after"]
TOKENS = 8
"""Long enough for models that pool neighbouring tokens."""
MOST_IMAGE_TOKENS = 1 << 16
HEAVY = 1 << 16
"""Numbers from which a product with a weight is not computed: only the shape of its result matters."""

REAL = ("__get__", "__getitem__")
"""What a heavy tensor answers itself: where it is must not be "nowhere", and an index may be a tensor whose value matters."""


@dataclass(frozen=True)
class ForwardPass:
    """What one pass over a row told, by the tensors' names in the model."""

    places: dict[str, Place]
    """Where a tensor is used first: before the first layer runs, after the last one has, or between; unused ones are not in it."""
    hidden: frozenset[str]
    """Tensors that the base model's last hidden states depend on."""
    reached: frozenset[str]
    """Tensors that anything depends on that the model returns; others may be used, as a pooler whose result is thrown away."""
    runs: tuple[int, ...]
    """The layers in the order in which they ran; one that runs twice is in it twice."""


def follow(model: nn.Module, stack: Stack, tensors: dict[str, Tensor]) -> ForwardPass:
    """Run `model`, whose own tensors by name are `tensors`, on one short row, with zeros for its weights.

    The weights may be on the meta device; none is read, none is made dense. Raises `PartitionError` for a model that
    cannot run so, or that does not run the layers of its stack one after another.
    """
    substitutes = {name: _zeros(tensor) for name, tensor in tensors.items()}
    computed = {name: _zeros(b) for name, b in model.named_buffers() if name not in tensors and b.is_meta}
    watch = _Watch({id(tensor): name for name, tensor in substitutes.items()})
    layers = model.get_submodule(stack.path)
    with ExitStack() as hooks:
        for index, layer in enumerate(layers.children()):
            hooks.callback(layer.register_forward_pre_hook(partial(watch.enter, index)).remove)
            hooks.callback(layer.register_forward_hook(watch.leave).remove)
        for module in _around(model, stack):
            hooks.callback(module.register_forward_hook(watch.leave_base).remove)
        hooks.enter_context(torch.enable_grad())
        hooks.enter_context(_experts_one_by_one(model))
        try:
            with watch:
                output = torch.func.functional_call(model, substitutes | computed, (), _inputs(model))
        except Exception as error:  # whatever a model of whatever family may raise
            raise PartitionError(
                f"the forward pass of {type(model).__name__} could not be followed: {type(error).__name__}: {error}"
            ) from error
    tables = {f"{name}.weight" for name, module in model.named_modules() if type(module) is nn.Embedding}
    if asked := sorted(watch.asked_where & tables):
        raise PartitionError(
            f"{type(model).__name__} asks where {asked[0]} lies before it looks rows up in it; here such a table is elsewhere until then"
        )
    first = list(dict.fromkeys(watch.runs))
    if first != list(range(stack.length)):
        found = ", ".join(map(str, first)) or "none"
        raise PartitionError(
            f"the layers of {type(model).__name__} ({stack.path}, {stack.length} of them) do not run one after another: {found} ran",
            ran=first,
        )
    returned = [x for x in tree_leaves(dict(output) if isinstance(output, dict) else output) if isinstance(x, Tensor)]
    return ForwardPass(watch.places(), watch.hidden, watch.behind(*returned), tuple(watch.runs))


@contextmanager
def _experts_one_by_one(model: Any) -> Iterator[None]:
    """Kernels that multiply with all experts at once do not work without them."""
    if not hasattr(model, "get_experts_implementation"):
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _around(model: nn.Module, stack: Stack) -> Iterator[nn.Module]:
    """The base model and what lies between it and the stack: some models call only a part of their base model."""
    segments, prefix = stack.path.split("."), base_prefix(model)
    for end in range(len(segments)):
        path = ".".join(segments[:end])
        if len(path) >= len(prefix):
            yield model.get_submodule(path)


def _inputs(model: nn.Module) -> dict[str, Any]:
    config: Any = model.config
    if "pixel_values" in getattr(model, "main_input_name", ""):
        settings = config.to_dict()
        if (tokens := image_tokens(settings)) > MOST_IMAGE_TOKENS:
            raise PartitionError(f"an image of this model has {tokens:,} patches; at most {MOST_IMAGE_TOKENS:,} are dealt with")
        return {"pixel_values": torch.zeros(1, *image_shape(settings))}
    # No padding, which many models look for among the ids.
    ids = torch.full((1, TOKENS), 1 if getattr(config, "pad_token_id", None) == 0 else 0)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"use_cache": False} if hasattr(config, "use_cache") else {})


class _Watch(TorchFunctionMode):
    """Notes which of the named tensors a function gets, and stands in for products that would be large."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self._uses: dict[str, int] = {}
        self._time = 0
        self._borders: list[int] = []
        self.runs: list[int] = []
        self.asked_where: set[str] = set()
        self.hidden: frozenset[str] = frozenset()

    def enter(self, index: int, *_: Any) -> None:
        self.runs.append(index)
        self._borders.append(self._time)

    def leave(self, *_: Any) -> None:
        self._borders.append(self._time)

    def leave_base(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        # The outermost of these modules leaves last, and so has the last word.
        states = getattr(output, "last_hidden_state", output[0] if isinstance(output, tuple) else None)
        if isinstance(states, Tensor):
            self.hidden = self.behind(states)

    def behind(self, *made: Tensor) -> frozenset[str]:
        """The named tensors that these were made of."""
        return frozenset(name for tensor in made for name in map(self._names.get, map(id, _leaves_of(tensor))) if name is not None)

    def places(self) -> dict[str, Place]:
        begin, end = self._borders[0], self._borders[-1]
        return {name: "before" if t <= begin else "after" if t > end else "within" for name, t in self._uses.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is torch.Tensor.device and id(args[0]) in self._names:
            self.asked_where.add(self._names[id(args[0])])
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        result = _stand_in(func, args, kwargs, given) if any(map(_is_heavy, given)) else func(*args, **kwargs)
        self._time += 1
        named = [(tensor, self._names[id(tensor)]) for tensor in given if id(tensor) in self._names]
        if named:
            made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            for tensor, name in named:
                # Its type or shape alone is no use of a weight: what is made of it then owes it no gradient.
                if any(x.requires_grad for x in made) if tensor.requires_grad else made:
                    self._uses.setdefault(name, self._time)
        return result


def _zeros(tensor: Tensor) -> Tensor:
    """Zeros of the same shape and type, in the memory of one."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape).detach().requires_grad_(tensor.is_floating_point())


def _is_heavy(tensor: Tensor) -> bool:
    return tensor.numel() >= HEAVY and all(stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)


def _stand_in(func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
    """Zeros as `func` would give them, with the same ancestors, from the shapes alone."""
    if getattr(func, "__name__", "") in REAL:
        return func(*args, **kwargs)
    on_meta = partial(tree_map, lambda x: x.detach().to("meta") if isinstance(x, Tensor) else x)
    with torch.no_grad():
        result = func(*on_meta(args), **on_meta(kwargs))
    if not any(isinstance(x, Tensor) for x in tree_leaves(result)):
        return func(*args, **kwargs)
    parents = [tensor for tensor in given if tensor.requires_grad]
    zeros: Any = _Zeros.apply
    return tree_map(lambda x: zeros(x.shape, x.dtype, *parents) if isinstance(x, Tensor) else x, result)


class _Zeros(torch.autograd.Function):
    """Zeros that are remembered to have come of the tensors given; there is no way back to them."""

    @staticmethod
    def forward(_ctx: Any, shape: torch.Size, dtype: torch.dtype, *_parents: Tensor) -> Tensor:
        small = math.prod(shape) < HEAVY
        return torch.zeros(shape, dtype=dtype) if small else torch.zeros((), dtype=dtype).expand(shape)


def _leaves_of(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that autograd would bring gradients to."""
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [parent for parent, _ in node.next_functions]
