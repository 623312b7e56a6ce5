"""What an engine measures on a card is what it measures on a processor."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, FidelityPayload, ImportancePayload, InfluencePayload
from fedcybgd.coordinator.engine.device import CPU, measure_on
from fedcybgd.coordinator.engine.evaluate import evaluate
from fedcybgd.coordinator.engine.fidelity import fidelity
from fedcybgd.coordinator.engine.importance import importance
from fedcybgd.coordinator.engine.influence import influence
from tests.support.families import FAMILIES
from tests.support.measured import Measured


@pytest.fixture(autouse=True)
def on_the_processor_again() -> Iterator[None]:
    yield
    measure_on(CPU)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("codec", ["exact", "int8"])
def test_scores_influence_importance_and_fidelity(family: str, codec: str, tmp_path: Path) -> None:
    measured = Measured(family, tmp_path)
    blocks = [ref if codec == "exact" or ref.block == "layers.1" else measured.encoded(ref.block, codec) for ref in measured.blocks]
    told = measured.payload()
    emulated = told | {"plan": "p", "block": "layers.1", "emulator": blocks, "dropped": [], "batch_size": 4}

    def all_of_it() -> list[float]:
        faith = fidelity(measured.store, FidelityPayload.model_validate(emulated))
        steep = importance(measured.store, ImportancePayload.model_validate(told | {"visited": ["layers.0", "layers.1"]}))
        score = evaluate(measured.store, EvaluatePayload(after_rounds=0, **told))
        moved = influence(measured.store, InfluencePayload.model_validate(told))
        assert faith.loss_emulator is not None
        return [
            *(faith.cosine, faith.loss_real, faith.loss_emulator), *steep.importance.values(), score.loss, *moved.influence.values(),
        ]  # fmt: skip

    there = all_of_it()
    measure_on("cuda")
    assert all_of_it() == pytest.approx(there, rel=1e-3, abs=1e-4)
