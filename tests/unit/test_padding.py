"""Padding changes nothing: a row has the loss beside others that it has alone, on both sides of the wire."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.models.batches import IGNORED, forward_logits, loss_sum
from fedcybgd.shared.models.row_encoder import row_encoder
from fedcybgd.shared.models.text_rows import Features, Packed, TextEncoder
from tests.support.families import TEXT, config_of, randomised


@pytest.fixture
def encoder_of(bert: Path, tmp_path: Path) -> Any:
    """An encoder with the tokenizer of tests, for a model of that configuration."""

    def encoder_of(config: dict[str, Any], task: str, max_length: int = 16, **settings: Any) -> TextEncoder:
        folder = tmp_path / "model"
        shutil.copytree(bert, folder, dirs_exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        values = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(values | settings))
        return row_encoder(folder, TaskSpec.model_validate({"task": task, "max_length": max_length}))

    return encoder_of


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", TEXT)
def test_a_row_beside_longer_ones_has_the_loss_that_it_has_alone(encoder_of: Any, family: str, side: str) -> None:
    task, make = TEXT[family]
    torch.manual_seed(0)
    model = randomised(make(2).eval())
    if model.config.pad_token_id is None:
        model.config.pad_token_id = 0
    encoder = encoder_of(config_of(model), task, padding_side=side)
    rows = [[7, 9, 11], [12, 8, 7, 13, 14, 9, 20, 21, 6], [30, 31, 9, 8, 15]]
    features = [Features(ids, [1] if task == "text-classification" else [IGNORED, *ids[1:]]) for ids in rows]
    with torch.no_grad():
        alone = [loss_sum(forward_logits(model, b), b, task) for b in (encoder.collate([f]) for f in features)]  # type: ignore[arg-type]
        batch = encoder.collate(features)
        beside, number = loss_sum(forward_logits(model, batch), batch, task)  # type: ignore[arg-type]
    assert number == sum(n for _, n in alone)
    assert float(beside) == pytest.approx(sum(float(loss) for loss, _ in alone), rel=1e-4, abs=1e-4)


def test_padding_is_what_the_model_takes_for_padding(encoder_of: Any) -> None:
    assert encoder_of({"model_type": "bert", "vocab_size": 100, "pad_token_id": 5}, "text-classification").pad == 5
    assert encoder_of({"model_type": "bert", "vocab_size": 100}, "text-classification").pad == 0
    assert encoder_of({"model_type": "llama", "vocab_size": 100, "pad_token_id": 32000}, "causal-lm").pad == 0
    assert encoder_of({"model_type": "llama", "vocab_size": 100, "pad_token_id": -1}, "causal-lm").pad == 0


@pytest.mark.parametrize("example", [{"text": "\u200b\u0000", "label": 1}, {"prompt": "my", "completion": "\u0000"}])
def test_a_row_that_gives_no_token_is_named(encoder_of: Any, example: dict[str, Any]) -> None:
    task = "text-classification" if "label" in example else "causal-lm"
    encoder = encoder_of({"model_type": "bert", "vocab_size": 100}, task)
    encoder.tokenizer.backend_tokenizer.post_processor = None  # no [CLS], no [SEP]
    good = {name: "card" if isinstance(value, str) else value for name, value in example.items()}
    encoder.tokenizer.backend_tokenizer.normalizer = tokenizers_that_drop()
    with pytest.raises(DataError, match=r"rows.csv row 2: its (text|completion) gives no token") as error:
        encoder([good, example], "rows.csv")
    assert error.value.detail["row"] == 2


def tokenizers_that_drop() -> Any:
    from tokenizers.normalizers import BertNormalizer

    return BertNormalizer()


@pytest.mark.parametrize("field", ["text", "completion", "prompt"])
def test_a_token_without_an_embedding_is_named_with_its_row(encoder_of: Any, field: str) -> None:
    encoder = encoder_of({"model_type": "bert", "vocab_size": 50}, "causal-lm")
    rows = [{"text": "a b c"}, {"text": "card"}] if field == "text" else [{"prompt": "a", "completion": "b"}]
    rows += [] if field == "text" else [{"prompt": "a", "completion": "b"} | {field: "card"}]
    with pytest.raises(DataError, match=f"rows.csv row 2: its {field} has token .* embeddings have 50 rows"):
        encoder(rows, "rows.csv")


def test_rows_are_numbered_through_the_whole_file(encoder_of: Any) -> None:
    encoder = encoder_of({"model_type": "bert", "vocab_size": 50}, "text-classification")
    rows = ({"text": "card" if i == 2500 else "a b", "label": 1} for i in range(1, 4000))
    with pytest.raises(DataError, match=r"the data row 2500: its text has token"):
        encoder(rows)


def test_a_stream_of_text_is_cut_alike_however_it_is_read(encoder_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of({"model_type": "bert", "vocab_size": 100}, "causal-lm", max_length=7)
    rows = [{"text": " ".join(["card", "lost", "my"][: 1 + i % 3])} for i in range(50)]
    at_once = encoder(rows)
    monkeypatch.setattr("fedcybgd.shared.models.text_rows.EXAMPLES_AT_ONCE", 3)
    assert encoder(rows) == at_once
    assert len(at_once) > 10


def test_packed_features_are_the_features() -> None:
    features = [Features([1, 2, 3], [0], [0, 0, 1]), Features([70_000], [2], [1]), Features([4, 5], [-100, 5], [0, 0])]
    packed = Packed(iter(features))
    assert list(packed) == packed[:] == features
    assert packed[-1] == features[-1]
    assert [packed.length(i) for i in range(3)] == [3, 1, 2]
    plain = [Features([1], [1]), Features([2, 3], [2, 3])]
    assert list(Packed(plain)) == plain
    with pytest.raises(IndexError):
        packed[3]
