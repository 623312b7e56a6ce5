"""Block influence, layer by layer, is what the whole model says it is, and takes the memory of one layer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from fedcybgd.coordinator.domain.jobs.measurements import InfluencePayload
from fedcybgd.coordinator.engine.calibration import CalibrationRows
from fedcybgd.coordinator.engine.influence import influence
from fedcybgd.coordinator.engine.streaming import Streamed
from fedcybgd.shared.contract.block_names import layers_of
from fedcybgd.shared.models.batches import forward_logits
from tests.support.families import FAMILIES
from tests.support.measured import ROWS, Measured


def measure(measured: Measured, **values: Any) -> Any:
    return influence(measured.store, InfluencePayload.model_validate(measured.payload() | values))


def as_the_whole_model_says(measured: Measured, per_block: int = 1) -> dict[str, float]:
    """1 - mean cosine over the tokens that are no padding, from the model's own hidden states, taken by hooks."""
    rows = CalibrationRows(measured.store, InfluencePayload.model_validate(measured.payload()))
    stack = next(m for m in measured.model.modules() if isinstance(m, torch.nn.ModuleList))
    seen: dict[int, tuple[Any, Any]] = {}
    for index, layer in enumerate(stack):

        def keep(_: Any, args: Any, kwargs: Any, output: Any, index: int = index) -> None:
            seen[index] = (args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output)

        layer.register_forward_hook(keep, with_kwargs=True)
    cosines: dict[str, list[float]] = {}
    for batch in rows.batches():
        with torch.no_grad():
            measured.model(**batch.inputs)
        for first in range(0, len(stack), per_block):
            last = min(first + per_block, len(stack)) - 1
            name = f"layers.{first}" if first == last else f"layers.{first}-{last}"
            cosine = functional.cosine_similarity(seen[first][0], seen[last][1], dim=-1)
            cosines.setdefault(name, []).extend(cosine[batch.mask.bool()].tolist())
    return {name: 1 - sum(values) / len(values) for name, values in cosines.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_mean_over_the_tokens_of_the_whole_model(family: str, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path)
    result = measure(measured)
    assert result.influence == pytest.approx(as_the_whole_model_says(measured), abs=1e-5)
    assert len(set(result.influence.values())) == 3
    assert result.rows == ROWS or measured.task == "causal-lm"
    assert result.tokens > 30


def test_a_block_of_several_layers_counts_from_its_entry_to_its_exit(tmp_path: Path) -> None:
    measured = Measured("llama-tied", tmp_path, layers=5, per_block=2)
    result = measure(measured)
    assert list(result.influence) == ["layers.0-1", "layers.2-3", "layers.4"]
    assert result.influence == pytest.approx(as_the_whole_model_says(measured, 2), abs=1e-5)


def test_a_layer_that_does_nothing_has_none(tmp_path: Path) -> None:
    measured = Measured("llama-untied", tmp_path)
    from fedcybgd.shared.models.assembly import read_shard

    ref = measured.blocks[2]
    silent = {name: t * 0 for name, t in read_shard(measured.store.path(ref.digest)).items()}
    measured.blocks[2] = measured.shard("layers.1", silent)
    result = measure(measured)
    assert result.influence["layers.1"] == pytest.approx(0, abs=1e-9)
    assert min(result.influence["layers.0"], result.influence["layers.2"]) > 1e-3


def test_padding_does_not_count(tmp_path: Path) -> None:
    measured = Measured("bert", tmp_path)
    together = measure(measured)
    rows = CalibrationRows(measured.store, InfluencePayload.model_validate(measured.payload()))
    assert any((batch.mask == 0).any() for batch in rows.batches()), "nothing is padded here"
    assert together.tokens == int(sum(batch.num_tokens for batch in rows.batches()))


def test_only_the_first_rows_are_taken_and_a_repeat_says_the_same(tmp_path: Path) -> None:
    measured = Measured("bert", tmp_path)
    few, many = measure(measured, rows=3), measure(measured)
    assert few.rows == 3
    assert few.tokens < many.tokens
    assert few.influence != many.influence
    assert measure(measured).influence == many.influence


def test_weights_of_a_bf16_model_are_computed_with_in_float32(tmp_path: Path) -> None:
    measured = Measured("llama-tied", tmp_path)
    from fedcybgd.shared.models.assembly import read_shard

    half = [{n: t.bfloat16() for n, t in read_shard(measured.store.path(b.digest)).items()} for b in measured.blocks]
    rounded = [{n: t.float() for n, t in tensors.items()} for tensors in half]
    names = [b.block for b in measured.blocks]
    measured.blocks = [measured.shard(n, t) for n, t in zip(names, rounded, strict=True)]
    wanted = measure(measured)
    measured.blocks = [measured.shard(n, t) for n, t in zip(names, half, strict=True)]
    assert measure(measured).influence == wanted.influence


def _real(model: torch.nn.Module) -> Iterator[str]:
    return (name for name, p in model.named_parameters() if not p.is_meta)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama-untied"])
def test_no_more_than_one_layer_has_weights_at_any_time(family: str, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path)
    rows = CalibrationRows(measured.store, InfluencePayload.model_validate(measured.payload()))
    streamed = Streamed(measured.store, rows.config, measured.task)
    held: list[set[int]] = []
    layers = [ref for ref in measured.blocks if ref.block.startswith("layers.")]
    for ref in measured.blocks:
        (streamed.stream if ref in layers else streamed.put)(ref)
    every = [streamed.layers(ref.block)[0] for ref in layers]

    def look(*_: Any) -> None:
        held.append({index for index, layer in enumerate(every) if any(True for _ in _real(layer))})

    for layer in every:
        next(m for m in layer.modules() if not list(m.children())).register_forward_hook(look)
    with torch.inference_mode():
        streamed.model(**next(rows.batches()).inputs)
    assert held == [{0}, {1}, {2}]
    look()
    assert held[-1] == set()


@pytest.mark.parametrize("family", ["bert", "llama-untied"])
def test_embeddings_are_held_only_while_they_are_looked_up(family: str, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path)
    rows = CalibrationRows(measured.store, InfluencePayload.model_validate(measured.payload()))
    streamed = Streamed(measured.store, rows.config, measured.task)
    streamed.put_for_lookup(measured.blocks[0])
    for ref in measured.blocks[1:]:
        streamed.put(ref)
    embeddings = [m for m in streamed.model.modules() if isinstance(m, torch.nn.Embedding)]
    held: list[bool] = []
    for module in embeddings:
        module.register_forward_pre_hook(lambda module, _: held.append(module._parameters["weight"].is_meta))
        module.register_forward_hook(
            lambda module, _inputs, output: held.append(module._parameters["weight"].is_meta and not output.is_meta)
        )
    batch = next(rows.batches())
    with torch.inference_mode():
        logits = [forward_logits(model, batch) for model in (streamed.model, measured.model)]
    assert held == [True] * 2 * len(embeddings)
    torch.testing.assert_close(*logits)


def test_the_layers_of_a_block() -> None:
    assert list(layers_of("layers.7")) == [7]
    assert list(layers_of("layers.10-12")) == [10, 11, 12]
    assert list(layers_of("head")) == list(layers_of("layers")) == []
