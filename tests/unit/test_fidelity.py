"""Fidelity is the cosine of two gradients of one block, batch by batch: as plain autograd says, from the very shards that an agent gets."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcybgd.coordinator.domain.jobs.measurements import FidelityPayload
from fedcybgd.coordinator.engine.calibration import CalibrationRows
from fedcybgd.coordinator.engine.fidelity import BatchGradient, NotMeasurable, compare, cosine, fidelity, gradients
from fedcybgd.shared.models.assembly import AssemblyError, names_by_canonical, read_shard
from fedcybgd.shared.models.batches import Batch, forward_logits, loss_sum
from fedcybgd.shared.models.text_rows import TextRows
from tests.support.families import FAMILIES
from tests.support.measured import ROWS, WIDE, Measured

BATCH = 4
"""Three batches of the rows, the last of one row."""


def rows_of(measured: Measured) -> CalibrationRows:
    return CalibrationRows(measured.store, FidelityPayload.model_validate(given(measured, "layers.0")))


def given(measured: Measured, block: str, codecs: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    codecs = codecs or {}
    emulator = [
        measured.encoded(ref.block, codecs[ref.block]) if codecs.get(ref.block, "exact") != "exact" else ref
        for ref in measured.blocks
        if codecs.get(ref.block) != "dropped"
    ]
    dropped = [name for name, codec in codecs.items() if codec == "dropped"]
    return measured.payload() | {"plan": "p", "block": block, "emulator": emulator, "dropped": dropped, "batch_size": BATCH} | more


def measure(measured: Measured, block: str, codecs: dict[str, str] | None = None, **more: Any) -> Any:
    return fidelity(measured.store, FidelityPayload.model_validate(given(measured, block, codecs, **more)))


def batches_of(measured: Measured) -> list[Batch]:
    """The rows in the order of the file, four at a time, as the tokenizer and nothing else makes them."""
    rows = rows_of(measured)
    return [rows._rows.batch(range(first, min(first + BATCH, len(rows)))) for first in range(0, len(rows), BATCH)]


def plainly(measured: Measured, block: str) -> list[BatchGradient]:
    """Loss and gradients of the model as transformers makes it, with nothing streamed."""
    names = names_by_canonical(measured.model)
    spec = next(s for s in measured.specs if s.name == block)
    found = []
    for batch in batches_of(measured):
        measured.model.zero_grad()
        loss, predictions = loss_sum(forward_logits(measured.model, batch), batch, measured.task)
        loss.backward()
        parameters = {t.name: measured.model.get_parameter(names[t.name]) for t in spec.tensors if t.is_parameter}
        found.append(BatchGradient(float(loss.detach()), predictions, {n: zero_or(p.grad, p) for n, p in parameters.items()}))
    return found


def zero_or(gradient: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like) if gradient is None else gradient.clone()


def hold(measured: Measured, payload: FidelityPayload) -> None:
    """Put the decoded values of an emulator without dropped or pruned layers into the plain model."""
    from tests.support.decoded import decode

    names = names_by_canonical(measured.model)
    with torch.no_grad():
        for ref in payload.emulator:
            for name, value in decode(measured.store.path(ref.digest), ref.codec).items():
                measured.model.get_parameter(names[name]).copy_(value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_streamed_model_has_the_losses_and_gradients_of_the_plain_one(family: str, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path)
    for block in ("embeddings", "layers.1", measured.blocks[-1].block):
        found = list(gradients(measured.store, rows_of(measured), measured.task, block, measured.blocks, BATCH))
        wanted = plainly(measured, block)
        assert [(b.loss, b.predictions) for b in found] == [(b.loss, b.predictions) for b in wanted]
        assert len(found) > 1
        for one, other in zip(found, wanted, strict=True):
            assert one.gradient.keys() == other.gradient.keys()
            for name, value in other.gradient.items():
                torch.testing.assert_close(one.gradient[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama-tied"])
def test_an_exact_emulator_is_the_real_model(family: str, tmp_path: Path) -> None:
    result = measure(Measured(family, tmp_path), "layers.1", plan="exact")
    assert result.cosine == pytest.approx(1, abs=1e-12)
    assert result.cosine_worst == pytest.approx(1, abs=1e-12)
    assert result.loss_emulator == result.loss_real
    assert (result.plan, result.block) == ("exact", "layers.1")
    assert result.rows > 0


@pytest.mark.parametrize("family", WIDE)
def test_the_more_is_left_out_the_less_faithful(family: str, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path, wide=True)
    cosines = []
    for codec in ("int8", "int4", "dropped"):
        result = measure(measured, "layers.0", {"layers.1": codec, "layers.2": codec} | ({"embeddings": "int8"} if codec == "int8" else {}))
        cosines.append(result.cosine)
        assert result.loss_emulator != result.loss_real
    assert 1 > cosines[0] > 0.99
    assert cosines[0] > cosines[1] > cosines[2]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama-untied"])
def test_pruned_layers_work_above_and_below_the_block(family: str, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path)
    lightly = measure(measured, "layers.1", {"layers.0": "pruned:25", "layers.2": "pruned:25"})
    assert 0 < lightly.cosine < 0.9995
    assert lightly.loss_emulator != lightly.loss_real


def expected(measured: Measured, payload: FidelityPayload) -> tuple[list[BatchGradient], list[BatchGradient]]:
    real = plainly(measured, payload.block)
    hold(measured, payload)
    return real, plainly(measured, payload.block)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_it_is_the_mean_over_the_batches_of_plain_models(family: str, tmp_path: Path) -> None:
    """The emulator is a plain model that holds the decoded values; a batch counts by its predictions."""
    measured = Measured(family, tmp_path, wide=True)
    payload = FidelityPayload.model_validate(given(measured, "layers.0", {"layers.1": "int4", "layers.2": "int8"}))
    real, bent = expected(measured, payload)
    result = fidelity(measured.store, payload)
    predictions = [b.predictions for b in real]
    assert len(set(predictions)) > 1
    cosines = [flat_cosine(one.gradient, other.gradient) for one, other in zip(real, bent, strict=True)]
    mean = sum(c * n for c, n in zip(cosines, predictions, strict=True)) / sum(predictions)
    assert abs(mean - sum(cosines) / len(cosines)) > 1e-5, "the weights make no difference here"
    assert result.cosine == pytest.approx(mean, abs=1e-6)
    assert result.cosine_worst == pytest.approx(min(cosines), abs=1e-6)
    assert result.loss_real == pytest.approx(sum(b.loss for b in real) / sum(predictions), rel=1e-6)
    assert result.loss_emulator == pytest.approx(sum(b.loss for b in bent) / sum(predictions), rel=1e-6)
    assert result.loss_real != pytest.approx(result.loss_emulator, rel=1e-6)


def flat_cosine(one: Any, other: Any) -> float:
    a, b = (torch.cat([g[name].flatten().double() for name in one]) for g in (one, other))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_the_batches_are_as_large_as_the_run_trains_on(tmp_path: Path) -> None:
    measured = Measured("bert", tmp_path, wide=True)
    seen = {size: measure(measured, "layers.0", {"layers.1": "int4"}, batch_size=size) for size in (1, BATCH, ROWS, 100)}
    assert len({result.cosine for result in seen.values()}) == 3
    assert seen[ROWS].cosine == seen[ROWS].cosine_worst == seen[100].cosine
    assert seen[1].cosine_worst < seen[1].cosine
    for result in seen.values():
        assert (result.loss_real, result.loss_emulator) == pytest.approx((seen[1].loss_real, seen[1].loss_emulator), rel=1e-5)


def test_a_batch_that_is_too_large_for_memory_is_taken_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedcybgd.coordinator.engine import calibration

    measured = Measured("bert", tmp_path, wide=True)
    whole = measure(measured, "layers.0", {"layers.1": "int4"})
    monkeypatch.setattr(calibration, "TOKENS_AT_ONCE", 2 * measured.payload()["max_length"])
    assert [len(list(step)) for step in rows_of(measured).steps(BATCH)] == [2, 2, 1]
    parts = measure(measured, "layers.0", {"layers.1": "int4"})
    assert (parts.cosine, parts.cosine_worst) == pytest.approx((whole.cosine, whole.cosine_worst), abs=1e-5)
    assert (parts.loss_real, parts.loss_emulator) == pytest.approx((whole.loss_real, whole.loss_emulator), rel=1e-5)


def test_a_batch_has_its_rows_in_the_order_of_the_file(tmp_path: Path) -> None:
    measured = Measured("bert", tmp_path)
    rows = rows_of(measured)
    kept: Any = rows._rows
    rows._rows = TextRows(reversed(kept), kept._encoder)
    steps = [len(part.labels) for step in rows.steps(BATCH) for part in step]
    longest = [int(part.mask.sum(1).max()) for step in rows.steps(BATCH) for part in step]
    assert steps == [4, 4, 1]
    assert longest == sorted(longest, reverse=True)
    assert longest[0] > longest[-1]


def test_only_the_visited_block_is_compared(tmp_path: Path) -> None:
    """A block above the compressed part sees other gradients than one below it: the answer must depend on the block."""
    measured = Measured("bert", tmp_path, wide=True)
    found = {block: measure(measured, block, {"layers.1": "int4"}).cosine for block in ("layers.0", "layers.2", "head")}
    assert len(set(found.values())) == 3


def test_several_layers_a_block(tmp_path: Path) -> None:
    measured = Measured("llama-untied", tmp_path, layers=5, per_block=2)
    result = measure(measured, "layers.2-3", {"layers.0-1": "dropped", "layers.4": "int8"})
    assert -1 <= result.cosine < 0.99


def test_layers_are_let_go_of_after_the_backward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedcybgd.coordinator.engine import fidelity as module

    made: list[Any] = []

    class Watched(module.Streamed):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(module, "Streamed", Watched)
    measured = Measured("llama-untied", tmp_path)
    assert list(gradients(measured.store, rows_of(measured), measured.task, "layers.1", measured.blocks, BATCH))
    for name in ("layers.0", "layers.2"):
        assert all(p.is_meta for p in made[0].layers(name)[0].parameters()), name
    assert not any(p.is_meta for p in made[0].layers("layers.1")[0].parameters())


def test_an_incomplete_emulator_is_an_error(tmp_path: Path) -> None:
    measured = Measured("bert", tmp_path)
    payload = given(measured, "layers.0")
    payload["emulator"] = [ref for ref in payload["emulator"] if ref.block != "layers.2"]
    with pytest.raises(AssemblyError, match="layer"):
        fidelity(measured.store, FidelityPayload.model_validate(payload))


def _scaled(measured: Measured, block: str, factor: float) -> Any:
    ref = next(b for b in measured.blocks if b.block == block)
    return measured.shard(block, {n: t * factor for n, t in read_shard(measured.store.path(ref.digest)).items()})


def test_an_emulator_without_a_finite_gradient_has_no_fidelity(tmp_path: Path) -> None:
    measured = Measured("bert", tmp_path)
    payload = given(measured, "layers.0")
    broken = [_scaled(measured, b.block, float("nan")) if b.block == "layers.2" else b for b in measured.blocks]
    result = fidelity(measured.store, FidelityPayload.model_validate(payload | {"emulator": broken}))
    assert result.cosine == result.cosine_worst == 0.0
    assert result.loss_emulator is None
    result.model_dump_json()
    with pytest.raises(NotMeasurable) as error:
        fidelity(measured.store, FidelityPayload.model_validate(payload | {"blocks": broken}))
    assert error.value.code == "not_measurable"


def test_the_cosine_runs_over_all_tensors_of_the_block() -> None:
    one = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0, 0.0]])}
    two = {"a": torch.tensor([3.0]), "b": torch.tensor([[-4.0, 0.0]])}
    assert cosine(one, one) == pytest.approx(1)
    assert cosine(one, two) == pytest.approx((9 - 16) / 25)
    assert cosine(one, {name: 7 * g for name, g in two.items()}) == pytest.approx((9 - 16) / 25)
    assert cosine(one, {name: 0 * g for name, g in two.items()}) == 0.0
    assert cosine({name: 0 * g for name, g in one.items()}, two) is None
    with pytest.raises(NotMeasurable):
        cosine({name: math.inf * g for name, g in one.items()}, two)


def test_a_batch_without_a_gradient_in_the_real_model_counts_with_its_loss_only() -> None:
    ahead, aside, nowhere = ({"a": torch.tensor(values)} for values in ([1.0, 0.0], [0.0, 1.0], [0.0, 0.0]))
    real = [BatchGradient(4.0, 2, ahead), BatchGradient(0.0, 5, nowhere), BatchGradient(3.0, 1, ahead)]
    bent = [BatchGradient(8.0, 2, ahead), BatchGradient(5.0, 5, aside), BatchGradient(3.0, 1, aside)]
    found = compare(real, bent)
    assert (found.cosine, found.worst) == pytest.approx((2 / 3, 0.0))
    assert (found.loss_real, found.loss_emulator) == (7 / 8, 2.0)
    with pytest.raises(NotMeasurable):
        compare(real[1:2], bent[1:2])
    with pytest.raises(NotMeasurable):
        compare([], [])
