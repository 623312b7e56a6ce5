"""Modules that keep their frozen weight quantized, and make it dense for the moment that it is multiplied with.

The class of a module is exchanged and its `weight` stays on the meta device; `make_dense` undoes it. The backward pass makes
the weight dense once more instead of keeping it. Embeddings of which some rows are trained are made in the same way: they hold these
rows alone.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from fedcybgd.shared.tensors.quantized import QuantizedTensor

CHUNK = {"cpu": 1 << 22}
"""Values of a weight that are dense at a time (16 MB in float32), by device."""
CHUNK_ELSEWHERE = 1 << 26


def part(weight: QuantizedTensor, start: int, stop: int) -> QuantizedTensor:
    """Rows `start` to `stop` of a quantized matrix, as a view."""
    offsets = None if weight.offsets is None else weight.offsets[start:stop]
    return QuantizedTensor(weight.codes[start:stop], weight.scales[start:stop], offsets, weight.bits)


def parts(weight: QuantizedTensor) -> Iterator[tuple[int, int, QuantizedTensor]]:
    """A matrix in pieces of at most CHUNK values (a row at least): first row, last row + 1, rows."""
    rows, columns = weight.shape
    step = max(1, CHUNK.get(weight.codes.device.type, CHUNK_ELSEWHERE) // columns)
    if rows <= step:
        yield 0, rows, weight
        return
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield start, stop, part(weight, start, stop)


class _Multiply(torch.autograd.Function):
    """x (…, in) times a frozen quantized matrix: (out, in) as nn.Linear has it, or (in, out) `transposed` as Conv1D has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedTensor, bias: Tensor | None, dtype: torch.dtype, transposed: bool) -> Tensor:
        ctx.weight, ctx.x_dtype, ctx.transposed = weight, x.dtype, transposed
        x = x.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        if transposed:
            dense = weight.dequantize(dtype)
            y = torch.mm(x.reshape(-1, x.shape[-1]), dense) if bias is None else torch.addmm(bias, x.reshape(-1, x.shape[-1]), dense)
            return _own(y.view(*x.shape[:-1], weight.shape[1]))
        pieces = list(parts(weight))
        if len(pieces) == 1:
            return _own(functional.linear(x, weight.dequantize(dtype), bias))
        y = x.new_empty(*x.shape[:-1], weight.shape[0])
        for start, stop, piece in pieces:
            y[..., start:stop] = functional.linear(x, piece.dequantize(dtype), None if bias is None else bias[start:stop])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient = gradients[0]
        if ctx.transposed:
            return (gradient @ ctx.weight.dequantize(gradient.dtype).t()).to(ctx.x_dtype), None, None, None, None
        pieces = list(parts(ctx.weight))
        if len(pieces) == 1:
            return (gradient @ ctx.weight.dequantize(gradient.dtype)).to(ctx.x_dtype), None, None, None, None
        total = gradient.new_zeros(*gradient.shape[:-1], ctx.weight.shape[1], dtype=torch.float32)
        for start, stop, piece in pieces:
            total += gradient[..., start:stop] @ piece.dequantize(gradient.dtype)
        return total.to(ctx.x_dtype), None, None, None, None


def _own(y: Tensor) -> Tensor:
    """The same values in the same place, and no view of others: autograd lets nobody write over a view that a function of ours returned."""
    return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y


def multiplied_in(x: Tensor) -> torch.dtype:
    """The type that a product with `x` is computed in: autocast's, where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class QuantizedLinear(nn.Linear):
    quantized: QuantizedTensor

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = _Multiply.apply(input, self.quantized, self.bias, multiplied_in(input), False)  # type: ignore[no-untyped-call]
        return y


class QuantizedConv1D(Conv1D):  # type: ignore[misc] # transformers has no types
    quantized: QuantizedTensor

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Multiply.apply(x, self.quantized, self.bias, multiplied_in(x), True)  # type: ignore[no-untyped-call]
        return y


class QuantizedEmbedding(nn.Embedding):
    quantized: QuantizedTensor

    def forward(self, input: Tensor) -> Tensor:
        return self.quantized.rows(input)


class RowsEmbedding(nn.Embedding):
    """Looks tokens up in those rows of its table that are trained; a visit meets no others."""

    index: Tensor
    rows: nn.Parameter
    padding: int | None
    """where in `rows` that of padding is, which has no gradient"""

    def forward(self, input: Tensor) -> Tensor:
        places = torch.searchsorted(self.index, input).clamp_(max=len(self.index) - 1)
        if not torch.equal(self.index[places], input):
            raise RuntimeError("a token was looked up that is in none of the rows of this visit")
        return functional.embedding(places, self.rows, self.padding)


_made: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


class _Probe(nn.Embedding):
    """Notes that it was asked for rows."""

    def forward(self, input: Tensor) -> Tensor:
        self.__dict__["was_asked"] = True
        return torch.zeros(*input.shape, self.embedding_dim, device=input.device)


def _quantized_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that `module` gets while its weight is quantized; None when its weight must be dense."""
    kind = type(module)
    if kind is nn.Linear:
        return QuantizedLinear
    if kind is Conv1D:
        return QuantizedConv1D
    if issubclass(kind, QuantizedLinear | QuantizedConv1D | QuantizedEmbedding):
        return kind
    return _embedding_class(module, QuantizedEmbedding)


def _embedding_class(module: nn.Module, ours: type[nn.Embedding]) -> type[nn.Module] | None:
    kind = type(module)
    if kind is nn.Embedding:
        return ours
    # Embeddings that scale, or shift their indices, ask nn.Embedding for the rows: our class comes between the two.
    if isinstance(module, nn.Embedding) and _asks_for_rows(module):
        return _class_between(kind, ours)
    return None


def _class_between(kind: type[nn.Module], ours: type[nn.Embedding]) -> type[nn.Module]:
    return _made.setdefault((kind, ours), type(f"{ours.__name__}Of{kind.__name__}", (kind, ours), {}))


def _asks_for_rows(module: nn.Embedding) -> bool:
    """Whether a table of a class of its own asks nn.Embedding for its rows; tried out on a copy that has none."""
    probe: nn.Module = copy.copy(module)
    probe.__class__ = _class_between(type(module), _Probe)
    try:
        with torch.no_grad():
            probe.forward(torch.zeros(1, 1, dtype=torch.int64))
    except Exception:  # noqa: S110 - whatever it raises once it has the rows, or instead of asking for them
        pass
    return "was_asked" in probe.__dict__


def can_train_rows(module: nn.Module) -> bool:
    """Whether `module` is a table that tokens are looked up in, and nothing that it does concerns rows that are not looked up."""
    if not isinstance(module, nn.Embedding) or module.max_norm is not None or module.scale_grad_by_freq:
        return False
    return _embedding_class(module, RowsEmbedding) is not None


def train_rows(module: nn.Module, index: Tensor, rows: nn.Parameter) -> None:
    """Let a dense `module` look tokens up in `rows` alone, which are those of the ascending numbers `index`."""
    kind = _embedding_class(module, RowsEmbedding)
    assert kind is not None
    module.dense_class = type(module)  # type: ignore[assignment]
    module.__class__ = kind
    # Not as a parameter of the module: it has none of this name when it is dense again.
    padding = (index == module.padding_idx).nonzero().flatten().tolist() if isinstance(module.padding_idx, int) else []
    module.__dict__ |= {"index": index, "rows": rows, "padding": padding[0] if padding else None}


def can_be_quantized(module: nn.Module, leaf: str) -> bool:
    """Whether the tensor `leaf` of `module` can stay quantized."""
    if leaf != "weight" or (isinstance(module, nn.Embedding) and module.max_norm is not None):
        return False
    return _quantized_class(module) is not None


def make_quantized(module: nn.Module, weight: QuantizedTensor) -> None:
    """Let `module` work with `weight`. Its own `weight` must be a placeholder of the same shape."""
    kind = _quantized_class(module)
    assert kind is not None
    if not hasattr(module, "dense_class"):
        module.dense_class = type(module)  # type: ignore[assignment]
    module.__class__ = kind
    module.quantized = weight  # type: ignore[assignment]


def make_dense(module: nn.Module) -> None:
    """Undo `make_quantized` or `train_rows`; nothing happens to a module that is dense."""
    if "dense_class" in module.__dict__:
        module.__class__ = module.__dict__.pop("dense_class")
        for name in ("quantized", "index", "rows", "padding"):
            module.__dict__.pop(name, None)


def quantized_weight(module: nn.Module) -> QuantizedTensor | None:
    return module.__dict__.get("quantized")
