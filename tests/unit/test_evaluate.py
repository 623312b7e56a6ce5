"""Scores are those of transformers in float32, whatever type a checkpoint is stored in, before and after its blocks were trained."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, FidelityPayload, InfluencePayload
from fedcybgd.coordinator.engine.calibration import CalibrationRows
from fedcybgd.coordinator.engine.evaluate import NotFinite, evaluate
from fedcybgd.coordinator.engine.fidelity import fidelity
from fedcybgd.coordinator.engine.influence import influence
from fedcybgd.coordinator.engine.streaming import Streamed
from tests.support.families import FAMILIES
from tests.support.measured import Measured

OTHERS = [("bert", torch.float16), ("bert", torch.float64), ("llama-tied", torch.float16), ("llama-untied", torch.float64)]


def stored_as(measured: Measured, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Store the model in another type, and round the model itself to it; returns what its blocks hold now."""
    from fedcybgd.shared.models.assembly import read_shard

    blocks = {}
    for ref in measured.blocks:
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in read_shard(measured.store.path(ref.digest)).items()}
        blocks[ref.block] = tensors
    measured.blocks = [measured.shard(name, tensors) for name, tensors in blocks.items()]
    with torch.no_grad():
        for parameter in measured.model.parameters():
            parameter.copy_(parameter.to(dtype).float())
    return blocks


def train(measured: Measured, block: str, tensors: dict[str, Any]) -> None:
    """The block is float32 from its first delta on; `measured.model` gets the same delta."""
    from fedcybgd.shared.models.families import base_prefix, canonical

    generator = torch.Generator().manual_seed(11)
    trained = {n: t.float() + 0.05 * torch.randn(t.shape, generator=generator) for n, t in sorted(tensors.items()) if t.is_floating_point()}
    names = [ref.block for ref in measured.blocks]
    measured.blocks[names.index(block)] = measured.shard(block, {**tensors, **trained})
    prefix = base_prefix(measured.model)
    with torch.no_grad():
        for name, parameter in measured.model.named_parameters():
            if canonical(name, prefix) in trained:
                parameter.copy_(trained[canonical(name, prefix)])


def score(measured: Measured) -> float:
    result = evaluate(measured.store, EvaluatePayload(after_rounds=0, **measured.payload()))
    assert result.loss is not None
    return float(result.loss)


def as_transformers_says(measured: Measured) -> float:
    """The mean loss of the model itself, row by row and so without padding."""
    rows = CalibrationRows(measured.store, InfluencePayload.model_validate(measured.payload()))
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in rows.batches():
            for ids, mask, labels in zip(batch.inputs["input_ids"], batch.mask, batch.labels, strict=True):
                row = {"input_ids": ids[mask.bool()][None], "attention_mask": mask[mask.bool()][None]}
                logits = measured.model(**row).logits[0].double()
                targets = labels[None] if measured.task == "text-classification" else labels[mask.bool()][1:]
                logits = logits[None] if logits.ndim == 1 else logits[:-1]
                total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
                count += len(targets)
    return total / count


@pytest.mark.parametrize(("family", "dtype"), [*((family, torch.bfloat16) for family in (*FAMILIES, "deberta", "deberta-v3")), *OTHERS])
def test_it_is_what_transformers_says_before_and_after_training(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path)
    blocks = stored_as(measured, dtype)
    before = score(measured)
    assert before == pytest.approx(as_transformers_says(measured), abs=1e-5)
    for block in ("layers.1", "embeddings", list(blocks)[-1]):
        train(measured, block, blocks[block])
        assert score(measured) == pytest.approx(as_transformers_says(measured), abs=1e-5)
    assert abs(score(measured) - before) > 1e-4, "the training made no difference"


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", torch.bfloat16), *OTHERS])
def test_an_emulator_of_a_partly_trained_model_is_measured_in_float32(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path)
    blocks = stored_as(measured, dtype)
    train(measured, "layers.1", blocks["layers.1"])
    payload = measured.payload() | {"plan": "x", "block": "layers.0", "emulator": measured.blocks, "batch_size": 100}
    result = fidelity(measured.store, FidelityPayload.model_validate(payload))
    assert result.cosine == pytest.approx(1, abs=1e-12)
    assert result.loss_real == pytest.approx(as_transformers_says(measured), abs=1e-5)
    assert all(0 < value < 2 for value in influence(measured.store, InfluencePayload.model_validate(measured.payload())).influence.values())


@pytest.mark.parametrize("family", ["bert", "llama-tied", "llama-untied"])
def test_memory_holds_no_layer_and_embeddings_only_where_they_are_multiplied_with(family: str, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path)
    stored_as(measured, torch.bfloat16)
    rows = CalibrationRows(measured.store, InfluencePayload.model_validate(measured.payload()))
    streamed = Streamed(measured.store, rows.config, measured.task)
    streamed.fill(measured.blocks)
    held = {name for name, p in streamed.model.named_parameters() if not p.is_meta}
    assert not [name for name in held if ".layers." in name or ".layer." in name]
    assert any("embed_tokens" in name for name in held) == (family == "llama-tied")
    assert not [name for name in held if name.endswith("word_embeddings.weight")]
    assert streamed.model.dtype is torch.float32, "in which LayoutLM makes its masks"


def test_a_loss_that_is_no_number_is_no_score(tmp_path: Path) -> None:
    from fedcybgd.shared.models.assembly import read_shard

    measured = Measured("bert", tmp_path)
    tensors = read_shard(measured.store.path(measured.blocks[2].digest))
    measured.blocks[2] = measured.shard("layers.1", {name: t * math.nan if t.is_floating_point() else t for name, t in tensors.items()})
    with pytest.raises(NotFinite, match="after 0 rounds"):
        score(measured)
