"""What saves memory in a visit changes nothing of what is learned: to the bit, or within the tolerance that is stated."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedcybgd.agent.training import checkpoints, loss
from fedcybgd.agent.training.checkpoints import activation_bytes, to_checkpoint
from fedcybgd.agent.training.errors import NonFinite, OptimizerMissing
from fedcybgd.agent.training.loss import Loss
from fedcybgd.agent.training.optimizer import OptimizerGroup, Stepper, make_optimizer
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.shared.contract.training import ParameterGroup, TrainSettings
from fedcybgd.shared.models.batches import Batch, forward_logits, loss_sum
from tests.support.training import Calls, Home, apart, options, same, train

Make = Callable[..., Home]


@pytest.fixture
def home(tmp_path: Path, bert: Path) -> Make:
    """Makes the home of visits to a small model of a family."""
    return lambda family, **more: Home(tmp_path, bert, family, **more)


def model_of(visitor: Visitor) -> Any:
    assert visitor._emulator is not None
    return visitor._emulator[1].model


# ---- checkpointing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["exact", "int4"])
@pytest.mark.parametrize("opened", ["embeddings", "layers.0", "layers.1", "layers.2", "head"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointed_layers_give_the_same_bits(home: Make, opened: str, codec: str, precision: str) -> None:
    place = home("llama-untied")
    plain = train(place.request(opened, codec=codec, precision=precision))
    assert same(train(place.request(opened, codec=codec, precision=precision), checkpointing="on"), plain)


def test_only_layers_from_the_trained_one_up_are_run_twice(home: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    calls = Calls(monkeypatch, LlamaDecoderLayer)
    visitor = Visitor("cpu", options(checkpointing="on"))
    request = home("llama-untied", layers=4).request("layers.1", steps=3)
    train(request, visitor)
    assert calls.by_layer(visitor) == [3, 6, 6, 6]
    assert all("forward" not in layer.__dict__ for layer in visitor._emulator[1].layers), "and it is undone"  # type: ignore[index]


def test_checkpointing_keeps_less(home: Make) -> None:
    place = home("llama-untied", layers=4)
    sizes = {}
    for setting in ("off", "on"):
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            train(place.request("layers.0", steps=1), checkpointing=setting)
        sizes[setting] = sum(kept)
    # Inside a checkpoint its own hooks are innermost: what is counted is what stays between forward and backward.
    assert sizes["on"] < sizes["off"] / 3


def test_auto_checkpoints_what_would_be_large() -> None:
    class Config:
        hidden_size, intermediate_size, num_attention_heads, _attn_implementation = 1024, 2816, 16, "eager"

    layers = [nn.Identity() for _ in range(16)]
    one = activation_bytes(Config, 1024, 256)
    assert 50e6 < one < 200e6
    few = checkpoints.WORTHWHILE // one
    assert to_checkpoint(layers, "auto", one, 0) == layers
    assert to_checkpoint(layers[16 - few :], "auto", one, 0) == []
    assert to_checkpoint(layers[15 - few :], "auto", one, 0) == layers[15 - few :]
    assert to_checkpoint(layers[14:], "auto", one, 4 * one) == layers[14:], "a limit makes it thriftier"
    assert to_checkpoint(layers, "off", one, 1) == []
    assert to_checkpoint(layers[14:], "on", 8, 0) == layers[14:]
    assert to_checkpoint(layers[15:], "on", 8, 0) == [], "one layer alone would be needed whole at once again"


# ---- the optimizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "opened"), [("llama-tied", "embeddings"), ("llama-untied", "layers.1"), ("bert", "layers.0"), ("gpt2", "embeddings")]
)
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_steps_inside_the_backward_pass_give_the_same_bits(home: Make, family: str, opened: str, checkpointing: str) -> None:
    place = home(family)
    # A norm that is never reached: the gradients are multiplied by 1, after the whole backward pass.
    plain = train(place.request(opened, max_grad_norm=1e30, weight_decay=0.1), checkpointing=checkpointing)
    assert same(train(place.request(opened, max_grad_norm=None, weight_decay=0.1), checkpointing=checkpointing), plain)


def test_without_clipping_one_gradient_exists_at_a_time() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(6)])
    parameters = list(model.parameters())
    alive: list[int] = []
    for parameter in parameters:
        # It runs before the stepper's hook, which was registered later.
        parameter.register_post_accumulate_grad_hook(lambda _: alive.append(sum(p.grad is not None for p in parameters)))
    stepper = Stepper([OptimizerGroup(parameters, 0.1)], settings(max_grad_norm=None), "cpu")
    before = [p.detach().clone() for p in parameters]
    stepper.step(model(torch.randn(2, 8)).square().sum(), 0, 1)
    assert alive == [1] * 6
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    stepper.close()
    model(torch.randn(2, 8)).sum().backward()
    assert all(p.grad is not None for p in parameters), "its hooks are gone"


def test_a_gradient_that_is_not_finite_is_not_stepped_inside_the_backward_pass_either() -> None:
    weight = nn.Parameter(torch.ones(2))
    stepper = Stepper([OptimizerGroup([weight], 0.1)], settings(max_grad_norm=None), "cpu")
    with pytest.raises(NonFinite, match="the gradient's norm is nan at step 1 of 2"):
        stepper.step((weight * torch.tensor([1.0, float("nan")])).sum(), 0, 2)
    assert torch.equal(weight, torch.ones(2))


def settings(**values: Any) -> TrainSettings:
    groups = [ParameterGroup(blocks=["layers.0"], learning_rate=0.1)]
    return TrainSettings.model_validate({"task": "causal-lm", "groups": groups, "batch_size": 1, "max_length": 8, "seed": 0} | values)


def test_the_8_bit_optimizer_has_moments_of_a_byte_and_learns_nearly_the_same() -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    one, other = (nn.Parameter(torch.zeros(64, 128)) for _ in range(2))
    target = torch.randn(64, 128)
    full = make_optimizer([OptimizerGroup([one], 0.02)], settings(), "cpu")
    small = make_optimizer([OptimizerGroup([other], 0.02)], settings(optimizer="adamw-8bit"), "cpu")
    for _ in range(30):
        for parameter, optimizer in [(one, full), (other, small)]:
            optimizer.zero_grad()
            (parameter - target).square().sum().backward()
            optimizer.step()
    moments = [t for t in small.state[other].values() if isinstance(t, torch.Tensor) and t.numel() == other.numel()]
    assert [t.dtype for t in moments] == [torch.uint8, torch.uint8]
    assert (one - other).norm() < 0.05 * one.norm()
    assert not torch.equal(one, other)


def test_an_8_bit_optimizer_that_is_not_installed_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(OptimizerMissing, match="not installed here"):
        make_optimizer([OptimizerGroup([nn.Parameter(torch.zeros(2))], 0.1)], settings(optimizer="adamw-8bit"), "cpu")


# ---- logits in chunks -------------------------------------------------------------------------------------------------


def random_batch(rows: int = 3, tokens: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, 100, (rows, tokens), generator=generator)
    labels = ids.clone()
    labels[:, :3] = -100
    labels[0, 8:] = -100
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.ones_like(ids), labels)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("codec", ["exact", "int8", "int4"])
@pytest.mark.parametrize(("family", "opened"), [("llama-untied", "head"), ("llama-untied", "layers.1"), ("llama-tied", "embeddings"),
                                                ("gpt2", "layers.1"), ("phi", "head"), ("phi", "layers.0"), ("bloom", "layers.2")])  # fmt: skip
def test_chunked_logits_give_the_loss_and_gradients_of_whole_ones(
    home: Make, family: str, opened: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK", 700)
    place = home(family)
    visitor = Visitor("cpu", options())
    train(place.request(opened, codec=codec, steps=1), visitor)
    model, batch = model_of(visitor), random_batch()
    parameters = [p for p in model.parameters() if not p.is_meta and p.is_floating_point()]
    for parameter in parameters:  # as if its visit went on
        parameter.requires_grad_(any(parameter is q for q in opened_parameters(visitor, place, opened)))
    trained = [p for p in parameters if p.requires_grad]
    assert trained

    def look(computed: Loss) -> tuple[float, list[torch.Tensor], int]:
        with Largest() as largest:
            total, count = computed(batch)
            gradients = torch.autograd.grad(total / count, trained)
        assert count == 3 * 9 - 4
        return total.item(), list(gradients), largest.numel

    plain, expected, _ = look(Loss(model, "causal-lm", torch.float32))
    chunked_loss = Loss(model, "causal-lm", torch.float32, "on", batch)
    assert chunked_loss._head is not None
    chunked, gradients, largest = look(chunked_loss)
    assert chunked == pytest.approx(plain, rel=1e-6)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    if family in ("llama-untied", "llama-tied"):
        assert largest < 23 * 100, "all logits never exist at once"


def opened_parameters(visitor: Visitor, place: Home, opened: str) -> list[nn.Parameter]:
    assembled = visitor._emulator[1]._assembled  # type: ignore[index]
    return [assembled.parameter(name) for name in place.blocks[opened] if assembled.is_parameter(name)]


def test_a_visit_with_chunked_logits_learns_the_same(home: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", 700)
    place = home("llama-untied")
    for opened in ("head", "layers.1"):
        # Adam divides by the gradient's own size: noise of 1e-7 in a tiny gradient shows, so compare after one small step.
        plain = train(place.request(opened, steps=1))
        assert apart(train(place.request(opened, steps=1), chunked_logits="on"), plain) < 1e-2


@pytest.mark.parametrize("family", ["gemma2", "llama-untied"])
def test_a_model_that_changes_its_logits_keeps_the_plain_way(home: Make, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = home(family)
    visitor = Visitor("cpu", options())
    train(place.request("layers.1", steps=1), visitor)
    model = model_of(visitor)
    if family == "llama-untied":  # something that no list of names knows of
        monkeypatch.setattr(type(model), "forward", scaled(type(model).forward))
    computed = Loss(model, "causal-lm", torch.float32, "on", random_batch())
    assert computed._head is None
    total, _ = computed(random_batch())
    expected, _ = loss_sum(forward_logits(model, random_batch()), random_batch(), "causal-lm")
    assert total.item() == expected.item()


def scaled(forward: Any) -> Any:
    def with_scale(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits.mul_(0.5)  # in place: the tensor stays the same one
        return output

    return with_scale


def test_auto_chunks_from_a_size_on(home: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    place = home("llama-untied")
    visitor = Visitor("cpu", options())
    train(place.request("layers.1", steps=1), visitor)
    batch = random_batch()
    computed = Loss(model_of(visitor), "causal-lm", torch.float32, "auto", batch)
    used: list[int] = []
    monkeypatch.setattr(loss._HeadLoss, "apply", lambda *_: used.append(1))
    computed(batch)
    assert used == []
    monkeypatch.setattr(loss, "WORTHWHILE", 3 * 12 * 100)
    computed(batch)
    assert used == [1]
