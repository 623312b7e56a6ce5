"""Fidelity is the cosine of two gradients of one block: as plain autograd says, from the very shards that an agent gets."""

from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.domain.measurements import FidelityPayload
from coordinator.engine.calibration import CalibrationRows
from coordinator.engine.fidelity import NotMeasurable, cosine, fidelity, gradient
from shared.assembly import AssemblyError, names_by_canonical, read_shard
from shared.batches import forward_logits, loss_sum
from tests.support.families import FAMILIES
from tests.support.measured import WIDE, Measured


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
    return measured.payload() | {"plan": "p", "block": block, "emulator": emulator, "dropped": dropped} | more


def measure(measured: Measured, block: str, codecs: dict[str, str] | None = None, **more: Any) -> Any:
    return fidelity(measured.store, FidelityPayload.model_validate(given(measured, block, codecs, **more)))


def plainly(measured: Measured, block: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the model as transformers makes it, with nothing streamed."""
    total, count = 0.0, 0
    measured.model.zero_grad()
    for batch in rows_of(measured).batches():
        loss, predictions = loss_sum(forward_logits(measured.model, batch), batch, measured.task)
        loss.backward()
        total, count = total + float(loss.detach()), count + predictions
    names = names_by_canonical(measured.model)
    spec = next(s for s in measured.specs if s.name == block)
    return total / count, {t.name: measured.model.get_parameter(names[t.name]).grad for t in spec.tensors if t.is_parameter}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_streamed_model_has_the_loss_and_gradient_of_the_plain_one(family: str, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path)
    for block in ("embeddings", "layers.1", measured.blocks[-1].block):
        loss, found = gradient(measured.store, rows_of(measured), measured.task, block, measured.blocks)
        wanted_loss, wanted = plainly(measured, block)
        assert loss == wanted_loss
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value if value is not None else torch.zeros_like(found[name]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama-tied"])
def test_an_exact_emulator_is_the_real_model(family: str, tmp_path: Path) -> None:
    result = measure(Measured(family, tmp_path), "layers.1", plan="exact")
    assert result.cosine == pytest.approx(1, abs=1e-12)
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
    assert 0 < lightly.cosine < 0.999
    assert lightly.loss_emulator != lightly.loss_real


def test_the_emulator_is_measured_from_what_its_shards_hold(tmp_path: Path) -> None:
    """The gradient in the emulator is that of a plain model which holds the decoded values."""
    from shared.codecs import decode

    measured = Measured("bert", tmp_path, wide=True)
    payload = FidelityPayload.model_validate(given(measured, "layers.0", {"layers.1": "int4", "layers.2": "int8"}))
    _, real = plainly(measured, "layers.0")
    real = {name: g.clone() for name, g in real.items()}
    names = names_by_canonical(measured.model)
    with torch.no_grad():
        for ref in payload.emulator:
            for name, value in decode(measured.store.path(ref.digest), ref.codec).items():
                if ref.codec != "exact":
                    measured.model.get_parameter(names[name]).copy_(value)
    loss, bent = plainly(measured, "layers.0")
    result = fidelity(measured.store, payload)
    assert result.loss_emulator == pytest.approx(loss, rel=1e-6)
    assert result.cosine == pytest.approx(cosine(real, bent), abs=1e-6)


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
    from coordinator.engine import fidelity as module

    made: list[Any] = []

    class Watched(module.Streamed):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(module, "Streamed", Watched)
    measured = Measured("llama-untied", tmp_path)
    gradient(measured.store, rows_of(measured), measured.task, "layers.1", measured.blocks)
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
    assert result.cosine == 0.0
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
    with pytest.raises(NotMeasurable):
        cosine({name: 0 * g for name, g in one.items()}, two)
