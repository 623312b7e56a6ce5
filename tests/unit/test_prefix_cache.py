"""What enters the lowest trained layer is computed once a visit; what is learned stays the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcybgd.agent.training import loss, prefix, prefix_trial
from fedcybgd.agent.training.compute import Compute
from fedcybgd.agent.training.visitor import Visitor
from tests.support.training import Calls, Home, apart, options, same, train

Make = Callable[..., Home]


@pytest.fixture
def home(tmp_path: Path, bert: Path) -> Make:
    """Makes the home of visits to a small model of a family."""
    return lambda family, **more: Home(tmp_path, bert, family, **more)


@pytest.mark.parametrize(
    ("family", "opened", "where", "codec"),
    [
        ("bert", "layers.1", "memory", "exact"),
        ("bert", "layers.2", "disk", "int4"),
        ("bert", "head", "auto", "int4"),
        ("llama-untied", "layers.1", "disk", "exact"),
        ("llama-untied", "norm", "auto", "int8"),
        ("gpt2", "layers.2", "auto", "int4"),
        ("opt", "layers.1", "auto", "int4"),
        ("gemma3", "layers.2", "auto", "exact"),
        ("bloom", "layers.1", "auto", "int4"),
        ("distilbert", "layers.2", "auto", "int4"),
    ],
)
def test_rows_alone_in_their_batch_learn_the_same_to_the_bit(home: Make, family: str, opened: str, where: str, codec: str) -> None:
    place = home(family)
    asked: Any = {"batch_size": 1, "steps": None, "epochs": 2, "codec": codec}
    assert same(train(place.request(opened, **asked), prefix_cache=where), train(place.request(opened, **asked)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_in_other_batches_they_learn_the_same_but_for_rounding(home: Make, precision: str) -> None:
    place = home("bert")
    # Small steps of warm-up only: Adam would make much of a rounding error in a gradient of nothing.
    asked: Any = {"batch_size": 3, "steps": None, "epochs": 3, "precision": precision, "seed": 3}
    difference = apart(train(place.request("layers.1", **asked), prefix_cache="memory"), train(place.request("layers.1", **asked)))
    assert difference < (1e-3 if precision == "float32" else 0.1)


@pytest.mark.parametrize("family", ["bert", "llama-untied"])
def test_the_first_epoch_has_the_same_bits_in_batches_too(home: Make, family: str) -> None:
    place = home(family)
    asked: Any = {"batch_size": 3, "steps": None, "epochs": 1}
    assert same(train(place.request("layers.1", **asked), prefix_cache="memory"), train(place.request("layers.1", **asked)))


def test_layers_below_run_once_a_row_and_are_then_let_go(home: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    calls = Calls(monkeypatch, LlamaDecoderLayer)
    place = home("llama-untied", layers=4)
    visitor = Visitor("cpu", options(prefix_cache="memory"))
    held: list[list[bool]] = []

    def look() -> None:
        layers = visitor._emulator[1].layers  # type: ignore[index]
        held.append(
            [any(not p.is_meta for p in layer.parameters()) or any("quantized" in m.__dict__ for m in layer.modules()) for layer in layers]
        )

    request = place.request("layers.2", codec="int8", batch_size=4, steps=6)  # 8 rows: two batches an epoch
    train(request, visitor, look)
    assert calls.by_layer(visitor) == [4, 4, 8, 8], "two batches to fill it, six steps, and a trial"
    assert held[2:] == [[False, False, True, True]] * 6, "the first two looks are before the batches of the filling"
    # The next visit reads them again.
    visitor._options = options()
    assert same(train(place.request("layers.1", codec="int8"), visitor), train(place.request("layers.1", codec="int8")))


def test_auto_caches_when_rows_are_used_again(home: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    place = home("bert")
    made: list[bool] = []
    plain = prefix.PrefixCache.__init__
    monkeypatch.setattr(prefix.PrefixCache, "__init__", lambda self, *a: (made.append(a[-1]), plain(self, *a))[1])
    monkeypatch.setattr(prefix_trial, "runs_of_prefix", lambda *_: 1)
    train(place.request("layers.1", batch_size=4, steps=2), prefix_cache="auto")
    assert made == [], "every row is used once"
    train(place.request("layers.1", batch_size=4, steps=3), prefix_cache="auto")
    assert made == [False], "in memory"
    monkeypatch.setattr(prefix, "LARGEST_IN_MEMORY", 10)
    train(place.request("layers.1", batch_size=4, steps=3), prefix_cache="auto")
    assert made == [False, True], "on disk"
    for setting in ("auto", "disk"):
        asked = place.request("layers.1", batch_size=4, steps=3)
        train(asked.model_copy(update={"disk_bytes": 1000}), prefix_cache=setting)
    assert made == [False, True], "limits.disk_gb leaves it less than it takes"
    train(place.request("layers.0", batch_size=4, steps=3), prefix_cache="auto")
    train(place.request("embeddings", batch_size=4, steps=3), prefix_cache="memory")
    train(place.request("layers.2", "embeddings", batch_size=4, steps=3), prefix_cache="memory")
    assert made == [False, True], "nothing lies below, or what lies below is trained"


def test_where_it_is_not_exact_it_is_off_and_says_so(home: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    place = home("bert")
    visitor = Visitor("cpu", options())
    plain = train(place.request("layers.1", batch_size=2, steps=8), visitor)
    visitor._options = options(prefix_cache="memory")
    monkeypatch.setattr(prefix.PrefixCache, "hidden", not_possible)
    assert same(train(place.request("layers.1", batch_size=2, steps=8), visitor), plain)
    assert same(train(place.request("layers.1", batch_size=2, steps=8), visitor), plain)
    assert caplog.text.count("no prefix cache for visits of layers.1 in this model: told so") == 1, "tried once"


def not_possible(_self: Any, _output: Any, _batch: Any) -> Any:
    raise prefix.NotExact("told so")


class Changed:
    """A small language model with three layers, changed by `change`, and its trial with the rows of a home."""

    def __init__(self, place: Home, change: Callable[[Any], None], trained: Callable[[Any], Any], below: int = 1) -> None:
        self.place, self.below = place, below
        self.model: Any = place.model
        self.model.requires_grad_(False)
        change(self.model.model)
        self.trained = list(trained(self.model.model).parameters())

    def runs(self) -> int:
        request = self.place.request("layers.1", batch_size=4)
        partition = Visitor("cpu", options())._data(request)
        loss_of = loss.Loss(self.model, "causal-lm", torch.float32)
        layers = list(self.model.model.layers)
        part = prefix.Prefix(self.model, layers, self.below)
        return prefix_trial.runs_of_prefix(part, partition, range(8), self.trained, loss_of, Compute("cpu", torch.float32))


def shared_norm(base: Any) -> None:
    base.layers[0].input_layernorm = base.layers[1].input_layernorm = base.norm


def twice(base: Any) -> None:
    base.layers = torch.nn.ModuleList([*base.layers, *base.layers])
    base.config.num_hidden_layers = 6


def side_door(base: Any) -> None:
    left: list[Any] = []
    base.layers[0].register_forward_pre_hook(lambda *_: left.clear())
    first, last = base.layers[0].mlp, base.layers[2].mlp
    plain_first, plain_last = first.forward, last.forward
    first.forward = lambda x: (left.append(plain_first(x)), left[0])[1]
    last.forward = lambda x: plain_last(x) + left[0]


def averaged(base: Any) -> None:
    plain = base.norm.forward
    base.norm.forward = lambda x: plain(x + x.mean(1, keepdim=True))  # padding and all


@pytest.mark.parametrize(
    ("change", "trained", "why"),
    [
        (shared_norm, lambda base: base.norm, "something that is trained is used in the layers below"),
        (twice, lambda base: base.layers[1], "layers below run again"),
        (side_door, lambda base: base.layers[1], "IndexError"),
        (averaged, lambda base: base.layers[1], "gradients would be others"),
    ],
)
def test_what_is_in_its_way_is_found_out(home: Make, change: Any, trained: Any, why: str) -> None:
    place = home("llama-untied")
    assert Changed(place, lambda _: None, trained).runs() == 1
    with pytest.raises(prefix.NotExact, match=why):
        Changed(place, change, trained).runs()
    assert not any(p.requires_grad for p in place.model.parameters())


def test_all_of_it_together(home: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "WORTHWHILE", 1)
    place = home("llama-untied", layers=4)
    asked: Any = {"codec": "int4", "dropped": ["layers.0"], "batch_size": 1, "steps": 16, "max_grad_norm": None}
    plain = train(place.request("layers.2", **asked), chunked_logits="on")
    together = train(place.request("layers.2", **asked), chunked_logits="on", prefix_cache="disk", checkpointing="on")
    assert same(together, plain)
