"""A dropped layer lets through what it is given, at its place in the stack, and can come back."""

import functools
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from fedcybgd.shared.models.assembly import Assembled, AssemblyError, Passthrough
from tests.support.families import EVERY_FAMILY, assembled_of, empty, inputs_of, logits_of, randomised, tensors_by_block

every_family = pytest.mark.parametrize("family", EVERY_FAMILY)


@functools.cache
def model_of(family: str, layers: int = 4) -> Any:
    return randomised(EVERY_FAMILY[family][1](layers))


def without(model: Any, dropped: set[int]) -> torch.Tensor:
    """The logits of a model whose dropped layers add nothing, by replacing what their forward returns."""
    hooks = []
    for index, layer in enumerate(Assembled(model).layers):
        if index in dropped:

            def let_through(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
                hidden = args[0] if args else kwargs["hidden_states"]
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            hooks.append(layer.register_forward_hook(let_through, with_kwargs=True))
    with torch.no_grad():
        logits = logits_of(model)
    for hook in hooks:
        hook.remove()
    return logits


@every_family
@pytest.mark.parametrize("dropped", [{0}, {1, 3}, {0, 1, 2}])
def test_the_model_computes_without_its_dropped_layers(family: str, dropped: set[int]) -> None:
    model = model_of(family)
    assembled = assembled_of(family, model)
    assembled.drop(dropped)
    assembled.check_complete()
    with torch.no_grad():
        found = logits_of(assembled.model)
        assert torch.equal(found, without(model, dropped))
        assert torch.equal(logits_of(assembled.model), found), "the second pass, which has nothing to find out"
        assert not torch.equal(found, logits_of(model))


@every_family
def test_tensors_of_dropped_layers_are_not_needed(family: str) -> None:
    model = model_of(family)
    blocks = tensors_by_block(model)
    assembled = Assembled(empty(family, model))
    assembled.drop([1, 2])
    for block, tensors in blocks.items():
        if block not in ("layers.1", "layers.2"):
            assembled.put(tensors)
    assembled.check_complete()
    assert not any(p.is_meta for p in assembled.model.parameters())
    with torch.no_grad():
        assert torch.equal(logits_of(assembled.model), without(model, {1, 2}))
    assembled.restore(1)
    with pytest.raises(AssemblyError, match="no shard holds") as refused:
        assembled.check_complete()
    assert set(refused.value.detail["missing"]) == set(blocks["layers.1"])
    assembled.put(blocks["layers.1"])
    assembled.put(blocks["layers.2"])  # comes back without being asked to
    assembled.check_complete()
    with torch.no_grad():
        assert torch.equal(logits_of(assembled.model), logits_of(model))


def test_what_is_left_keeps_its_index() -> None:
    assembled = assembled_of("gemma3", model_of("gemma3"))
    layers = list(assembled.layers)
    assembled.drop([1])
    assert [layer is old for layer, old in zip(assembled.layers, layers, strict=True)] == [True, False, True, True]
    assert isinstance(assembled.layers[1], Passthrough)
    assert assembled.dropped == {1}
    assert assembled.layers[1].layer_idx == 1, "plain attributes of a layer are there"
    assembled.restore(1)
    assembled.restore(2)
    assert assembled.layers[2] is layers[2], "a layer that is as it was made stays"
    assert assembled.dropped == frozenset()
    assert type(assembled.layers[1]) is type(layers[1])
    assert assembled.layers[1].config is assembled.model.config, "a configuration is not copied with its layer"


def test_a_dropped_layer_is_let_go_of() -> None:
    assembled = assembled_of("llama-tied", model_of("llama-tied"))
    gone = weakref.ref(assembled.layers[1].get_parameter("mlp.up_proj.weight"))
    assembled.drop([1])
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("family", ["bloom", "llama-tied"])
def test_the_layer_that_is_asked_leaves_no_trace(family: str) -> None:
    model = model_of(family)
    assembled = assembled_of(family, model)
    assembled.drop([0])
    ran: list[int] = []
    for index, layer in enumerate(assembled.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        assembled.model(**inputs_of(model), past_key_values=cache, use_cache=True)
    assert ran == [0, 1, 2, 3]
    assert [cache.get_seq_length(index) for index in (1, 2, 3)] == [6, 6, 6]


def test_a_layer_without_weights_is_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("bloom")
    assembled = assembled_of("bloom", model)
    assembled.drop([1])
    assembled.layers[0].to("meta")  # a layer of the prefix that was let go of, and that something else stands in for
    monkeypatch.setattr(assembled.layers[0], "forward", lambda *_, **__: pytest.fail("it was asked"))
    passthrough: Any = assembled.layers[1]
    hidden = torch.randn(1, 2, 16)
    alibi = torch.zeros(2, 1, 2)
    found = passthrough(hidden, alibi=alibi, attention_mask=None)
    assert found[0] is hidden
    assert found[1:] == (None,)


def test_not_every_layer_can_be_dropped() -> None:
    assembled = assembled_of("bert", model_of("bert"))
    assembled.drop(range(4))
    with pytest.raises(AssemblyError, match="every layer is dropped"):
        assembled.check_complete()
    with pytest.raises(AssemblyError, match="all are dropped"):
        logits_of(assembled.model)


@pytest.mark.parametrize("index", [4, -1, 99])
def test_a_layer_that_is_not_there_is_refused(index: int) -> None:
    assembled = assembled_of("bert", model_of("bert"))
    with pytest.raises(AssemblyError, match=f"no layer {index}; it has 4"):
        assembled.drop([index])
    with pytest.raises(AssemblyError, match=f"no layer {index}; it has 4"):
        assembled.restore(index)


def test_a_model_without_layers_drops_none() -> None:
    model: Any = nn.Linear(2, 2)
    model.tie_weights = lambda: None
    assembled = Assembled(model)
    assembled.put({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    assembled.check_complete()
    with pytest.raises(AssemblyError, match="no stack of layers"):
        assembled.drop([0])
