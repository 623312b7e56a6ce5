"""What a model says of itself: true to the facts, and no text of others steers it."""

from dataclasses import replace

import pytest
import yaml

from fedcybgd.coordinator.domain.model_blocks import StoredBlock
from fedcybgd.coordinator.domain.model_card import CardFacts, base_digest, model_card
from fedcybgd.coordinator.domain.run_file import RunFile, parse_run_file
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.measured import Failure, Score
from fedcybgd.shared.contract.views import BytesView

BLOCKS = [
    StoredBlock(name=name, kind="layer", digest=digest_of(name.encode()), size=500_000, num_parameters=1, tensors=[])
    for name in ("embeddings", "layers.0")
]
TASK = {"kind": "text-classification", "labels": ["```", "| a |"], "max_length": 32}


def facts(spec: RunFile, *scores: tuple[int, Score]) -> CardFacts:
    return CardFacts(
        run=spec.name, base="minilm", base_blocks=BLOCKS, spec=spec, rounds_done=2, rounds_total=4, agents=3, scores=scores,
        sent=BytesView(down=2_000_000, up=1_500_000), whole_model_bytes=1_000_000, made_with="9.9",
    )  # fmt: skip


def run_file(**changes: object) -> RunFile:
    return parse_run_file(yaml.safe_dump({"name": "intents", "model": "minilm", "task": TASK, "agents": ["secret-clinic"], **changes}))


def score(loss: float, accuracy: float) -> Score:
    return Score(loss=loss, accuracy=accuracy, accuracy_error=0.01, majority=0.6, macro_f1=0.5, matthews=0.25, rows=100, seconds=1.0)


def test_it_has_the_base_models_score_and_the_last_one() -> None:
    failed = Score(loss=None, accuracy=None, rows=0, seconds=0.0, failed=Failure(code="skipped", message="a newer one"))
    text = model_card(facts(run_file(), (0, score(1.0, 0.6)), (1, score(0.7, 0.7)), (2, score(0.5, 0.8)), (3, failed)))
    assert "| 0 (base model) | 60.00% ± 1.00 | 0.500 | 0.250 | 1.0000 |" in text
    assert "| 2 | 80.00% ± 1.00 | 0.500 | 0.250 | 0.5000 |" in text
    assert "70.00%" not in text
    assert "commonest label always would have an accuracy of 60.00%" in text
    assert "2.0 MB, 1.5 MB; the model has 1.0 MB" in text
    assert base_digest(BLOCKS) in text


def test_it_has_the_score_of_this_model_and_of_the_head_alone() -> None:
    found = replace(facts(run_file(), (0, score(1.0, 0.6)), (2, score(0.5, 0.7))), kept=score(0.4, 0.8), head=score(0.6, 0.65))
    rows = [line for line in model_card(found).splitlines() if line.startswith("| ") and "±" in line]
    assert [row.split(" |")[:2] for row in rows] == [
        ["| 0 (base model)", " 60.00% ± 1.00"], ["| head alone, trained as often", " 65.00% ± 1.00"], ["| this model", " 80.00% ± 1.00"],
    ]  # fmt: skip


def test_it_says_that_its_head_is_calibrated_and_with_what() -> None:
    plain = replace(facts(run_file(), (0, score(1.0, 0.6)), (2, score(0.5, 0.7))), kept=score(0.4, 0.8))
    assert "calibrated on these held-out rows, with temperature 2.5" in model_card(replace(plain, temperature=2.5))
    assert "temperature" not in model_card(plain)


def test_the_run_file_in_it_can_be_read_again_and_names_nobody() -> None:
    text = model_card(facts(run_file(schedule={"cycles": 2})))
    kept = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    read = yaml.safe_load("\n".join(kept))
    assert (read["task"]["labels"], read["agents"], read["schedule"]) == (TASK["labels"], 3, {"cycles": 2})
    assert "secret-clinic" not in text
    assert "not scored on held-out rows" in text


def test_no_label_ends_a_part_of_it() -> None:
    text = model_card(facts(run_file()))
    assert [line for line in text.splitlines() if line.startswith("```")] == ["```python", "```"]


def test_adapters_are_called_so_and_loaded_as_what_they_are_exported_as() -> None:
    lora = run_file(method="adapters", adapters={"rank": 4}, schedule={"always": ["head"]})
    merged, beside = (model_card(replace(facts(lora), form=form)) for form in ("merged", "peft"))  # type: ignore[arg-type]
    assert "Adapters of rank 4 beside the layers of `minilm`" in merged
    assert "library_name: transformers" in merged
    assert "peft" not in merged
    assert "library_name: peft" in beside
    assert 'PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained("minilm", dtype="float32"' in beside


@pytest.mark.parametrize("other", [BLOCKS[::-1], BLOCKS[:1]])
def test_another_base_has_another_digest(other: list[StoredBlock]) -> None:
    assert base_digest(other) != base_digest(BLOCKS)
