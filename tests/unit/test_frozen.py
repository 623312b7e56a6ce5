"""Quantized weights stay quantized in memory and compute what the dense ones would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from fedcybgd.agent.training import frozen
from fedcybgd.agent.training.emulator import Emulator
from fedcybgd.agent.training.frozen import can_be_quantized, make_dense, make_quantized, quantized_weight
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.shared.tensors.quantized import quantize
from tests.support.training import Home, apart, options, same, train

BITS = pytest.mark.parametrize("bits", [8, 4])


def quantized_module(module: nn.Module, bits: int) -> torch.Tensor:
    """Quantize the weight of a module and return its values."""
    code = quantize(module.weight.detach(), bits)  # type: ignore[arg-type]
    module.weight = nn.Parameter(torch.empty(code.shape, device="meta"), requires_grad=False)
    module.requires_grad_(False)
    make_quantized(module, code)
    return code.dequantize()


def gradient_of(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.autograd.grad((y.float() * torch.randn(y.shape, generator=generator)).sum(), x)[0]


@BITS
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_product_and_its_gradient_have_the_bits_of_the_dense_one(bits: int, autocast: bool, bias: bool, kind: str) -> None:
    torch.manual_seed(1)
    module: Any = nn.Linear(96, 40, bias=bias) if kind == "linear" else Conv1D(40, 96)
    weight = quantized_module(module, bits)
    x = torch.randn(3, 5, 96, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = module(x)
        if autocast:
            weight = quantized_weight(module).dequantize(torch.bfloat16)  # type: ignore[union-attr]
        plain = (
            functional.linear(x, weight, module.bias)
            if kind == "linear"
            else torch.addmm(module.bias, x.view(15, 96), weight).view(3, 5, 40)
        )
    assert y.dtype == plain.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert torch.equal(y, plain)
    assert torch.equal(gradient_of(y, x), gradient_of(plain, x))


@BITS
def test_in_pieces_it_is_the_same_but_for_rounding(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    module = nn.Linear(96, 40)
    weight = quantized_module(module, bits)
    monkeypatch.setattr(frozen, "CHUNK", {"cpu": 7 * 96})
    x = torch.randn(5, 96, requires_grad=True)
    plain = functional.linear(x, weight, module.bias)
    torch.testing.assert_close(module(x), plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient_of(module(x), x), gradient_of(plain, x), rtol=1e-5, atol=1e-5)


def test_no_dense_weight_waits_for_the_backward_pass() -> None:
    module = nn.Linear(64, 64)
    weight = quantized_module(module, 8)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = module(x)
        assert kept == []
        functional.linear(x, weight.requires_grad_())
        assert kept, "the hook sees what is kept"
    held = [v for v in vars(y.grad_fn).values() if isinstance(v, torch.Tensor)]
    assert held == []


@BITS
def test_an_embedding_makes_only_the_rows_dense_that_are_looked_up(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 3

    for kind, factor in [(nn.Embedding, 1), (Scaled, 3)]:
        module = kind(50, 64)
        weight = quantized_module(module, bits)
        sizes: list[int] = []
        dequantize = frozen.QuantizedTensor.dequantize

        def noting(self: Any, *args: Any, dequantize: Any = dequantize, sizes: list[int] = sizes) -> Any:
            sizes.append(self.codes.shape[0] * self.codes[0].numel())
            return dequantize(self, *args)

        monkeypatch.setattr(frozen.QuantizedTensor, "dequantize", noting)
        ids = torch.tensor([[3, 7], [49, 3]])
        assert torch.equal(module(ids), weight[ids] * factor)
        assert max(sizes) <= 4 * 64
        monkeypatch.undo()
        make_dense(module)
        assert type(module) is kind


def test_what_reads_its_weight_itself_is_not_kept_quantized() -> None:
    class Own(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.weight[input]

    class Mentions(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            super().extra_repr()
            return self.weight[input]

    class Helped(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.scaled(input + 2)

        def scaled(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * self.weight.new_ones(())

    assert not can_be_quantized(Mentions(4, 4), "weight")
    assert can_be_quantized(Helped(4, 4), "weight")
    attention = nn.MultiheadAttention(8, 2)
    assert not can_be_quantized(Own(4, 4), "weight")
    assert not can_be_quantized(attention.out_proj, "weight")
    assert not can_be_quantized(nn.Embedding(4, 4, max_norm=1.0), "weight")
    assert not can_be_quantized(nn.Conv2d(1, 1, 1), "weight")
    assert not can_be_quantized(nn.Linear(4, 4), "bias")
    assert can_be_quantized(nn.Linear(4, 4), "weight")


Make = Callable[..., Home]


@pytest.fixture
def home(tmp_path: Path, bert: Path) -> Make:
    """Makes the home of visits to a small model of a family."""
    return lambda family: Home(tmp_path, bert, family)


@pytest.mark.parametrize(
    "family",
    [
        "bert",
        "distilbert",
        "roberta",
        "gpt2",
        "opt",
        "bloom",
        "llama-untied",
        "llama-tied",
        "gemma",
        "gemma3",
        "phi3",
        "glm",
        "longformer",
        "deberta",
        "deberta-v2",
        "deberta-v3",
    ],
)
def test_a_visit_among_quantized_blocks_has_the_bits_of_one_among_their_decoded_values(home: Make, family: str) -> None:
    place = home(family)
    exact = train(place.request("layers.1"))
    for codec in ("int8", "int4"):
        wanted = train(place.request("layers.1", codec=f"decoded-{codec}"))
        visitor = Visitor("cpu", options())  # a prefix cache may change last bits
        assert same(train(place.request("layers.1", codec=codec), visitor), wanted)
        assert not same(exact, wanted), "the codec changes something"
        assert visitor._emulator is not None
        emulator: Emulator = visitor._emulator[1]
        quantized = [name for name, m in emulator.model.named_modules() if quantized_weight(m) is not None]
        assert any(name.split(".")[-2:-1] != [] for name in quantized)
        for layer in (0, 2):
            dense = [n for n, p in emulator.layers[layer].named_parameters() if p.ndim > 1 and not p.is_meta]
            assert dense == [], "no matrix of a frozen layer is dense"
        assert all(not p.is_meta and p.dtype == torch.float32 for p in emulator.layers[1].parameters())


def test_a_tied_head_works_from_the_quantized_embeddings(home: Make) -> None:
    place = home("llama-tied")
    visitor = Visitor("cpu")
    train(place.request("layers.0", codec="int4"), visitor)
    model: Any = visitor._emulator[1].model  # type: ignore[index]
    assert quantized_weight(model.lm_head) is quantized_weight(model.model.embed_tokens)
    # And when the embeddings are trained, both are the one float32 parameter again.
    delta = train(place.request("embeddings", codec="int4"), visitor)
    assert quantized_weight(model.lm_head) is None
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert same(delta, train(place.request("embeddings", codec="decoded-int4")))


def test_a_warm_emulator_changes_codecs_from_visit_to_visit(home: Make) -> None:
    place = home("llama-untied")
    visitor = Visitor("cpu", options())
    for opened, codec in [
        ("layers.0", "int8"),
        ("layers.1", "exact"),
        ("layers.0", "int4"),
        ("head", "int8"),
        ("embeddings", "int4"),
        ("layers.2", "int8"),
    ]:
        warm = train(place.request(opened, codec=codec), visitor)
        assert same(warm, train(place.request(opened, codec=codec))), f"{opened} among {codec}"


@pytest.mark.parametrize(
    ("family", "opened", "precision"),
    [
        ("bert", ("layers.1", "head"), "float32"), ("bert", ("embeddings",), "float32"), ("bert", ("embeddings",), "bfloat16"),
        ("gpt2", ("layers.2",), "bfloat16"), ("llama-tied", ("embeddings",), "float32"), ("llama-untied", ("head", "embeddings"), "float32"),
    ],
)  # fmt: skip
def test_what_is_trained_from_8_bits_learns_what_it_would_from_the_same_values(
    home: Make, family: str, opened: tuple[str, ...], precision: str
) -> None:
    place, visitor = home(family), Visitor("cpu", options())
    wanted = {"codec": "int8", "precision": precision}
    delta = train(place.request(*opened, trained="int8", **wanted), visitor)
    assert same(delta, train(place.request(*opened, trained="decoded-int8", **wanted)))
    assert same(delta, train(place.request(*opened, trained="int8", **wanted), visitor)), "and so it does in a warm emulator"
    assert not same(delta, train(place.request(*opened, **wanted)))
    train(place.request("layers.0", **wanted), visitor)
    assert same(delta, train(place.request(*opened, trained="int8", **wanted), visitor)), "after it was frozen"


def test_a_dropped_layer_comes_back(home: Make) -> None:
    place = home("llama-untied")
    visitor = Visitor("cpu")
    whole = train(place.request("layers.0", codec="int8"), visitor)
    less = train(place.request("layers.0", codec="int8", dropped=["layers.1"]), visitor)
    assert not same(less, whole)
    assert same(less, train(place.request("layers.0", codec="int8", dropped=["layers.1"])))
    assert same(train(place.request("layers.0", codec="int8"), visitor), whole)
    again = train(place.request("layers.1", codec="exact", dropped=["layers.0"]), visitor)
    assert same(again, train(place.request("layers.1", codec="exact", dropped=["layers.0"])))


def test_in_bfloat16_the_difference_is_that_of_rounding(home: Make) -> None:
    place = home("llama-untied")
    one = train(place.request("layers.1", codec="int8", precision="bfloat16"))
    assert apart(one, train(place.request("layers.1", codec="decoded-int8", precision="bfloat16"))) < 0.2
