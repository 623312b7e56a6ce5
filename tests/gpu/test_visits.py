"""A visit on a card learns what the same visit learns on a CPU, and the same again to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedcybgd.agent.training.compute import choose_precision
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.shared.tensors.quantized import quantize
from tests.support.families import SUPPORTED
from tests.support.models import word_piece
from tests.support.training import Home, apart, options, same, train

IN_ANY_ORDER: set[str] = set()
"""Families with an operation that torch has in no version that adds up in one order."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    word_piece(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Home:
    """Wide enough that groups of 64 are whole, and for the attention kernels of a card."""
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    return Home(tmp_path_factory.mktemp("llama"), tokenizer, "llama-untied", layers=4, **sizes)


def on_card(**given: str) -> Visitor:
    return Visitor("cuda", options(**given))


@pytest.mark.parametrize("family", SUPPORTED)
def test_every_family_learns_the_same_as_on_a_cpu(family: str, tmp_path: Path, tokenizer: Path) -> None:
    """Frozen blocks in 4 bits, one step: more of them enlarge what rounding differs in, in experts and near ties above all."""
    home = Home(tmp_path, tokenizer, family)
    wanted = home.request("layers.1" if "layers.1" in home.blocks else "layers.0", codec="int4", steps=1)
    assert apart(train(wanted, on_card()), train(wanted)) < 2e-3
    assert torch.is_deterministic_algorithms_warn_only_enabled() == (family in IN_ANY_ORDER)


@pytest.mark.parametrize("codec", ["exact", "int8", "int4"])
@pytest.mark.parametrize("block", ["embeddings", "layers.0", "layers.2", "norm", "head"])
def test_every_kind_of_block_and_codec(block: str, codec: str, llama: Home) -> None:
    wanted = llama.request(block, codec=codec)
    assert apart(train(wanted, on_card()), train(wanted)) < 2e-3


def test_what_saves_memory_changes_nothing(llama: Home) -> None:
    wanted = llama.request("layers.2", codec="int8", steps=6)
    plain = train(wanted, on_card())
    assert same(plain, train(wanted, on_card(checkpointing="on")))
    for setting in ({"prefix_cache": "memory"}, {"prefix_cache": "disk"}, {"chunked_logits": "on"}):
        assert apart(plain, train(wanted, on_card(**setting))) < 1e-3, setting


def test_bfloat16_is_what_auto_takes_and_comes_close_to_float32(llama: Home) -> None:
    assert choose_precision("auto", "cuda") == torch.bfloat16
    exact = train(llama.request("layers.2", codec="int4"), on_card())
    half = train(llama.request("layers.2", codec="int4", precision="auto"), on_card())
    assert 1e-5 < apart(exact, half) < 0.5


def test_clipping_and_stepping_in_the_backward_pass(llama: Home) -> None:
    for norm in (None, 0.5):
        wanted = llama.request("layers.2", "head", codec="int8", max_grad_norm=norm)
        assert apart(train(wanted, on_card()), train(wanted)) < 2e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", ["embeddings", "layers.0", "head"])
def test_the_same_visit_gives_the_same_bits_again(block: str, precision: str, llama: Home) -> None:
    """Which is what makes a run that was disturbed end with the weights of one that was not."""
    wanted = llama.request(block, codec="int4", steps=8, precision=precision)
    warm = on_card()
    first = train(wanted, warm)
    assert same(first, train(wanted, warm)), "in a process that is warm"
    assert same(first, train(wanted, on_card())), "in another one"


def test_a_card_makes_dense_what_a_cpu_does() -> None:
    values = torch.randn(96, 4096 + 48, generator=torch.Generator().manual_seed(1))
    for bits in (8, 4):
        kept = quantize(values, bits)
        there = kept.to("cuda")
        torch.testing.assert_close(there.dequantize().cpu(), kept.dequantize(), rtol=1e-6, atol=1e-6)
        assert torch.equal(there.dequantize(torch.bfloat16).cpu(), kept.dequantize(torch.bfloat16)), "by our own kernel, to the bit"
        codes = quantize(values.cuda(), bits)
        assert torch.equal(codes.codes.cpu(), kept.codes)


def test_the_peak_is_that_of_the_card_and_nothing_stays_but_the_model(llama: Home) -> None:
    visitor = on_card()
    told: list[Any] = []
    train(llama.request("layers.2", codec="int8"), visitor)
    before = torch.cuda.memory_allocated()
    metrics = visitor.visit(llama.request("layers.1", codec="int8"), told.append, lambda: False)
    assert before < metrics.peak_memory_bytes < before + (64 << 20)
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
    assert torch.cuda.memory_reserved() <= torch.cuda.memory_allocated() + (64 << 20), "freed memory is another program's to have"
